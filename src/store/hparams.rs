//! What TensorBoard's HParams tab reads of a run: its hyperparameters, and how it ended.
//!
//! Both are summaries of the plugin `hparams`, with a tag and no value: their content is a message
//! `HParamsPluginData` (version 0) in the metadata, `session_start_info = 3` with the values, or
//! `session_end_info = 4` with the status. A run is a session of its own. The plugin's `Experiment`, which
//! would list the columns, is left out: then TensorBoard makes the list of all runs that it sees, knows which
//! values differ and shows those first. With one it takes the list of whichever run it finds first.

use serde_json::Value as Json;

use super::protobuf::ProtoMessage;
use crate::experiment::Hyperparameters;

/// A tensor of no element, float32: DT_FLOAT, and a shape with one dimension of 0.
const NOTHING: [u8; 6] = [0x08, 1, 0x12, 2, 0x12, 0];

/// How a session ended, by TensorBoard's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    Success = 1,
    Failure = 2,
}

/// The summary of the values with which a run began, at `seconds` since 1970.
pub fn session_start(hyperparameters: &Hyperparameters, seconds: f64) -> ProtoMessage {
    let mut info = ProtoMessage::default();
    for (key, value) in hyperparameters {
        let (mut written, mut entry) = (ProtoMessage::default(), ProtoMessage::default());
        match value {
            Json::Bool(flag) => written.varint(4, u64::from(*flag)),
            Json::Number(number) => written.double(2, number.as_f64().unwrap_or(f64::NAN)),
            Json::String(text) => written.string(3, text),
            other => written.string(3, &other.to_string()),
        };
        info.message(1, entry.string(1, key).message(2, &written));
    }
    info.double(5, seconds);
    summary("_hparams_/session_start_info", 3, &info)
}

/// The summary of how a run ended, at `seconds` since 1970.
pub fn session_end(status: SessionStatus, seconds: f64) -> ProtoMessage {
    let mut info = ProtoMessage::default();
    info.varint(1, status as u64).double(2, seconds);
    summary("_hparams_/session_end_info", 4, &info)
}

/// A summary whose content is field `field` of the plugin's data.
fn summary(tag: &str, field: u64, content: &ProtoMessage) -> ProtoMessage {
    let message = || ProtoMessage::default();
    let (mut data, mut plugin, mut metadata, mut value, mut summary) =
        (message(), message(), message(), message(), message());
    data.message(field, content);
    plugin.string(1, "hparams").message(2, &data);
    metadata.message(1, &plugin);
    value.string(1, tag).delimited(8, &NOTHING).message(9, &metadata);
    summary.message(1, &value);
    summary
}
