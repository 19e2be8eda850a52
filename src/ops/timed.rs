//! A device that keeps time: wraps any [`Ops`] and, when asked to, measures every operation.
//!
//! While recording it waits for the device after each operation, so the parts are exact to the cost
//! of one launch and one wait (some 15 µs on CUDA), and their sum is a little more than a step takes
//! undisturbed. While not recording it only passes calls on. With the time it records the operation's
//! floating-point operations and the bytes it must move at least, as the operation gives them
//! ([`Operation::work`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{
    Dtype, ElementBytes, Family, LinearShape, Operation, Ops, ReplayKey, Result, Role, ScratchShape, Work, op,
};

/// The name under which token ids on their way to the device are recorded.
pub const TOKEN_UPLOAD: &str = "token upload";

/// A device and the times of its operations.
pub struct Timed<O> {
    pub inner: O,
    recording: bool,
    records: BTreeMap<Label, OperationTime>,
}

/// One kind of operation: its name with its shape, and what decides its speed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// As `runner bench` prints it.
    pub name: String,
    pub family: Family,
}

/// The time of one kind of operation, all calls together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OperationTime {
    pub calls: u64,
    pub time: Duration,
    pub flops: f64,
    pub bytes: f64,
}

impl<O: Ops> Timed<O> {
    /// Wraps a device; nothing is recorded yet.
    pub fn new(inner: O) -> Timed<O> {
        Timed { inner, recording: false, records: BTreeMap::new() }
    }

    /// Starts with empty records.
    pub fn start(&mut self) {
        self.recording = true;
        self.records.clear();
    }

    /// Stops recording and gives what was recorded, by operation and shape.
    pub fn finish(&mut self) -> BTreeMap<Label, OperationTime> {
        self.recording = false;
        std::mem::take(&mut self.records)
    }

    /// Passes a call on and, while recording, waits for it and adds it to the record of its kind.
    fn timed<R>(&mut self, label: Label, work: Work, call: impl FnOnce(&mut O) -> Result<R>) -> Result<R> {
        if !self.recording {
            return call(&mut self.inner);
        }
        let start = Instant::now();
        let result = call(&mut self.inner)?;
        self.record(start, label, work)?;
        Ok(result)
    }

    /// Waits for what began at `start` and adds it to the record of its kind.
    fn record(&mut self, start: Instant, label: Label, work: Work) -> Result<()> {
        self.inner.synchronize()?;
        let time = start.elapsed();
        let record = self.records.entry(label).or_default();
        record.calls += 1;
        record.time += time;
        record.flops += work.flops;
        record.bytes += work.bytes;
        Ok(())
    }
}

/// Writes a method that times the inner device's.
macro_rules! timed {
    ($($name:ident($Op:ident<$($of:ident),+>) -> $gives:ty;)*) => {
        $(
            fn $name(&mut self, op: op::$Op<'_, $(Self::$of),+>) -> Result<$gives> {
                if !self.recording {
                    return self.inner.$name(op);
                }
                let element = ElementBytes::of(|role| self.inner.dtype(role));
                let (label, work) = (Label { name: op.label(), family: op.family() }, op.work(element));
                self.timed(label, work, |inner| inner.$name(op))
            }
        )*
    };
}

impl<O: Ops> Ops for Timed<O> {
    type Buf = O::Buf;
    type Ids = O::Ids;

    pass_on!();

    fn upload_ids(&mut self, dst: &mut O::Ids, ids: &[u16]) -> Result<()> {
        let label = Label { name: TOKEN_UPLOAD.into(), family: Family::Host };
        self.timed(label, Work::bytes(2.0 * ids.len() as f64), |inner| inner.upload_ids(dst, ids))
    }

    fn download(&mut self, src: &O::Buf, dst: &mut [f32]) -> Result<()> {
        let label = Label { name: "losses to the host".into(), family: Family::Host };
        self.timed(label, Work::bytes(4.0 * dst.len() as f64), |inner| inner.download(src, dst))
    }

    fn merkle_roots(&mut self, bufs: &[(&O::Buf, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        let bytes = bufs.iter().map(|(_, bytes)| bytes.len() as f64).sum();
        let label = Label { name: "state digest".into(), family: Family::Digest };
        let hashed = self.timed(label.clone(), Work::bytes(bytes), |inner| inner.merkle_roots(bufs))?;
        if hashed.is_none() {
            // The host hashes instead; nothing was done here.
            self.records.remove(&label);
        }
        Ok(hashed)
    }

    fn identity(&self, buf: &O::Buf) -> u64 {
        self.inner.identity(buf)
    }

    // Work that is replayed as a whole has no parts to time.
    fn replay(&mut self, key: ReplayKey) -> Result<bool> {
        if self.recording { Ok(false) } else { self.inner.replay(key) }
    }

    fn recorded(&mut self, key: ReplayKey) -> Result<()> {
        if self.recording { Ok(()) } else { self.inner.recorded(key) }
    }

    op::operations!(timed);
}

#[cfg(test)]
mod tests {
    use super::super::dry::Dry;
    use super::super::{Activate, Linear, LinearShape, Nonlinearity};
    use super::*;

    #[test]
    fn operations_are_recorded_by_name_shape_and_family_and_only_when_asked() {
        let mut ops = Timed::new(Dry::new(Dtype::BF16));
        let x = ops.alloc(Role::Activation, 8 * 16).expect("nothing can fail");
        let weight = ops.alloc(Role::Param, 32 * 16).expect("nothing can fail");
        let mut out = ops.alloc(Role::Activation, 8 * 32).expect("nothing can fail");
        let shape = LinearShape { rows: 8, c_in: 16, c_out: 32 };
        for round in 0..3 {
            if round == 1 {
                ops.start();
            }
            ops.linear(Linear { out: &mut out, x: &x, weight: &weight, bias: None, shape })
                .expect("nothing can fail");
        }
        let function = Nonlinearity::Gelu;
        ops.activate(Activate { out: &mut out, pre: &x, function, rows: 8, channels: 16 })
            .expect("nothing can fail");
        let records: Vec<_> = ops
            .finish()
            .into_iter()
            .map(|(label, r)| (label.name, label.family, r.calls, r.flops, r.bytes))
            .collect();
        let bytes = 2.0 * (8.0 * (16.0 + 32.0) + 16.0 * 32.0);
        assert_eq!(
            records,
            [
                ("gelu".to_owned(), Family::Gelu, 1, 0.0, 512.0),
                ("linear 16 to 32".to_owned(), Family::Linear, 2, 2.0 * 8192.0, 2.0 * bytes),
            ]
        );
        ops.linear(Linear { out: &mut out, x: &x, weight: &weight, bias: None, shape })
            .expect("nothing can fail");
        assert!(ops.finish().is_empty(), "nothing is recorded after the end");
    }
}
