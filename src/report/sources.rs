//! What a run has read of each source of its mixture: the tokens by the ledger, the epochs by the shards in
//! the lock.

use serde::Serialize;

use crate::proof::Entry;
use crate::proof::lock::Lock;
use crate::units;

/// What was read of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceRead {
    pub name: String,
    /// Tokens of the source in the stream of samples so far; what rewinds and `data.offset` passed over
    /// is part of them.
    pub tokens: u64,
    /// Passes over the source; not known without the lock.
    pub epochs: Option<f64>,
}

impl std::fmt::Display for SourceRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, units::counted(self.tokens, "token"))?;
        self.epochs.map_or(Ok(()), |epochs| write!(f, ", {epochs:.2} epochs"))
    }
}

/// What the entries of a run with sequences of `seq_len` tokens tell; empty without a mixture.
pub fn sources_read(entries: &[Entry], lock: Option<&Lock>, seq_len: u64) -> Vec<SourceRead> {
    let Some(last) = entries.iter().rev().find(|entry| !entry.sources.is_empty()) else { return Vec::new() };
    let read = |(name, tokens): (&String, &u64)| {
        let an_epoch = lock.map(|lock| tokens_an_epoch(lock, name, seq_len)).filter(|tokens| *tokens > 0);
        let epochs = an_epoch.map(|an_epoch| *tokens as f64 / an_epoch as f64);
        SourceRead { name: name.clone(), tokens: *tokens, epochs }
    };
    last.sources.iter().map(read).collect()
}

/// Tokens of the sequences of a source, from the lines of its shards: `NAME, N tokens, sha256 …`.
fn tokens_an_epoch(lock: &Lock, source: &str, seq_len: u64) -> u64 {
    let prefix = format!("data.mix.{source}.shard.");
    let lines = lock.numerics.iter().filter(|(key, _)| key.starts_with(&prefix));
    let tokens =
        lines.filter_map(|(_, line)| line.rsplit(", ").nth(1)?.strip_suffix(" tokens")?.parse::<u64>().ok());
    tokens.map(|tokens| tokens.saturating_sub(1) / seq_len.max(1) * seq_len).sum()
}
