//! Where the value of a key came from.

use std::fmt;

use super::layers::{Layer, LayerSource, PlacedValue};

/// Where the value of a key came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The default.
    Default,
    /// It follows from something else, named here.
    Derived(String),
    /// A line, from 1, of a file.
    File { path: String, line: usize },
    /// An environment variable of this name.
    Environment(String),
    /// The command line.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Derived(from) => f.write_str(from),
            Origin::File { path, line } => write!(f, "{path}:{line}"),
            Origin::Environment(name) => f.write_str(name),
            Origin::Set => f.write_str("--set"),
        }
    }
}

/// Of a value in a layer.
pub(super) fn origin_in(layer: &Layer, entry: &PlacedValue) -> Origin {
    match &layer.source {
        LayerSource::Defaults => Origin::Default,
        LayerSource::Derived => Origin::Derived(entry.why.clone()),
        LayerSource::File(file) => {
            Origin::File { path: file.shown.clone(), line: file.position(entry.key_span.start).0 }
        }
        LayerSource::Variable { name, .. } => Origin::Environment(name.clone()),
        LayerSource::Set { .. } => Origin::Set,
    }
}
