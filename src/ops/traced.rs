//! A device that is watched: what each operation of a forward and backward pass reads and writes, by name,
//! and every matrix that was written, once it is whole.
//!
//! A matrix gets a number when an operation writes it. It is shown to the watcher before the next operation
//! that touches its buffer, so that it is as it was written. Buffers are told apart by their addresses: those
//! of a model do not move while it runs. What remains of the pass, its [`Trace`], is a function of the model
//! and the shape of the micro-batch: the same on the device without memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::op::outline::{Access, Outline, Outlined};
use super::{
    DeviceError, Dtype, ElementBytes, LinearShape, Nonlinearity, Operation, Ops, Result, Role, ScratchShape,
    Work, op,
};

/// The operations of a forward and backward pass in order, and what flows between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    pub operations: Vec<TracedOperation>,
    pub matrices: Vec<TracedMatrix>,
}

/// One operation of a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedOperation {
    pub outline: Outline,
    /// Floating-point operations, as [`Operation::work`] counts them.
    pub flops: u64,
    /// For each of [`Outline::matrices`] what it is before and after.
    pub flow: Vec<Flow>,
}

/// One matrix of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// None where nothing is read.
    pub before: Option<FlowSource>,
    /// Its number after the operation, where that writes.
    pub after: Option<usize>,
}

impl Flow {
    /// What an excerpt that touches its part of the matrix like this finds there. One that only reads what
    /// the operation writes is about another of its outputs.
    pub fn found(&self, access: Access) -> Option<FlowSource> {
        match access {
            Access::Read => self.before.or(self.after.map(FlowSource::Matrix)),
            Access::Set | Access::Add => self.before,
        }
    }
}

/// Where an operation's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowSource {
    /// A parameter, by its position in the model's order.
    Parameter(usize),
    /// A matrix of the pass, by number.
    Matrix(usize),
}

/// A matrix as an operation wrote it, or as the pass found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedMatrix {
    /// Number of the operation, its name and its field: `012 linear.out`; what the pass found ends in
    /// ` before`.
    pub name: String,
    /// The operation that wrote it; none of what the pass found.
    pub writer: Option<usize>,
    pub role: Role,
    pub rows: usize,
    pub columns: usize,
}

/// Sees each matrix with its number and the buffer that begins with it.
pub type Watch<'a, O> = &'a mut dyn FnMut(&mut O, usize, &TracedMatrix, &<O as Ops>::Buf) -> Result<()>;

/// A device under watch, for one pass.
pub struct Traced<'a, O: Ops> {
    pub inner: &'a mut O,
    parameters: BTreeMap<usize, usize>,
    trace: Trace,
    /// The number of the matrix in each buffer.
    held: BTreeMap<usize, usize>,
    /// Matrices that were not shown yet.
    unseen: BTreeSet<usize>,
    watch: Watch<'a, O>,
}

fn address<B>(buf: &B) -> usize {
    std::ptr::from_ref(buf).addr()
}

impl<'a, O: Ops> Traced<'a, O> {
    /// Watches a pass of a model with these parameters, in the model's order.
    pub fn new<'b>(
        inner: &'a mut O,
        parameters: impl Iterator<Item = &'b O::Buf>,
        watch: Watch<'a, O>,
    ) -> Traced<'a, O>
    where
        O::Buf: 'b,
    {
        let parameters = parameters.enumerate().map(|(at, buf)| (address(buf), at)).collect();
        let (trace, held, unseen) = (Trace::default(), BTreeMap::new(), BTreeSet::new());
        Traced { inner, parameters, trace, held, unseen, watch }
    }

    /// The pass, when all of it was shown.
    ///
    /// # Errors
    /// A matrix was left that no later operation touched and that was not [`Traced::release`]d.
    pub fn finish(self) -> Result<Trace> {
        match self.unseen.first() {
            None => Ok(self.trace),
            Some(left) => Err(DeviceError::Failed {
                device: self.inner.device_name(),
                operation: "trace",
                message: format!("nothing reads `{}`, so it was not seen", self.trace.matrices[*left].name),
            }),
        }
    }

    /// Shows what a buffer holds and forgets it: its content may change now without an operation. Returns the
    /// number of the matrix that it held.
    pub fn release(&mut self, buf: &O::Buf) -> Result<Option<usize>> {
        self.show(buf)?;
        Ok(self.held.remove(&address(buf)))
    }

    fn show(&mut self, buf: &O::Buf) -> Result<()> {
        match self.held.get(&address(buf)) {
            Some(number) if self.unseen.remove(number) => {
                (self.watch)(self.inner, *number, &self.trace.matrices[*number], buf)
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, buf: &O::Buf, matrix: TracedMatrix) -> usize {
        let number = self.trace.matrices.len();
        self.held.insert(address(buf), number);
        self.unseen.insert(number);
        self.trace.matrices.push(matrix);
        number
    }

    /// Writes down an operation that is about to run, on `bufs`: nothing of it where it has no outline.
    fn record(&mut self, bufs: &[&O::Buf], outline: Option<Outline>, work: Work) -> Result<()> {
        bufs.iter().try_for_each(|buf| self.show(buf))?;
        let Some(outline) = outline else { return Ok(()) };
        let outline = self.in_context(outline, bufs);
        let number = self.trace.operations.len();
        let mut flow = Vec::with_capacity(bufs.len());
        for (matrix, buf) in outline.matrices().into_iter().zip(bufs) {
            let op::outline::Matrix { name, role, access, rows, columns } = matrix;
            let parameter = self.parameters.get(&address(*buf)).map(|at| FlowSource::Parameter(*at));
            let held = self.held.get(&address(*buf)).copied();
            // A table is as long as it was.
            let rows = held.filter(|_| rows == 0).map_or(rows, |held| self.trace.matrices[held].rows);
            let name = format!("{number:03} {}.{name}", outline.name());
            let mut before = parameter.or(held.map(FlowSource::Matrix)).filter(|_| access != Access::Set);
            if before.is_none() && access != Access::Set {
                let name = format!("{name} before");
                let found = self.add(buf, TracedMatrix { name, writer: None, role, rows, columns });
                self.show(buf)?;
                before = Some(FlowSource::Matrix(found));
            }
            let written = || TracedMatrix { name, writer: Some(number), role, rows, columns };
            let after = (access != Access::Read).then(|| self.add(buf, written()));
            flow.push(Flow { before, after });
        }
        let flops = work.flops as u64;
        self.trace.operations.push(TracedOperation { outline, flops, flow });
        Ok(())
    }

    /// The outline with what only the operations before it tell.
    fn in_context(&self, outline: Outline, bufs: &[&O::Buf]) -> Outline {
        let held = |buf: &O::Buf| Some(&self.trace.matrices[*self.held.get(&address(buf))?]);
        match outline {
            Outline::LinearBackwardWeight { shape, bias, write, mut order } => {
                let dout = held(bufs[bufs.len() - 2]);
                let writer = dout.and_then(|dout| Some(self.trace.operations[dout.writer?].outline));
                order.after_gelu = match writer {
                    Some(Outline::LinearBackwardInputActivate { shape: of, function, .. }) => {
                        function == Nonlinearity::Gelu && (of.rows, of.c_in) == (shape.rows, shape.c_out)
                    }
                    _ => false,
                };
                Outline::LinearBackwardWeight { shape, bias, write, order }
            }
            other => other,
        }
    }
}

/// Writes a method that records the operation and passes it on.
macro_rules! traced {
    ($($name:ident($Op:ident<$($of:ident),+>) -> $gives:ty;)*) => {
        $(
            fn $name(&mut self, op: op::$Op<'_, $(Self::$of),+>) -> Result<$gives> {
                let element = ElementBytes::of(|role| self.inner.dtype(role));
                self.record(&op.tensors(), op.outline(), op.work(element))?;
                self.inner.$name(op)
            }
        )*
    };
}

impl<O: Ops> Ops for Traced<'_, O> {
    type Buf = O::Buf;
    type Ids = O::Ids;

    pass_on!();

    fn upload_ids(&mut self, dst: &mut O::Ids, ids: &[u16]) -> Result<()> {
        self.inner.upload_ids(dst, ids)
    }

    fn download(&mut self, src: &O::Buf, dst: &mut [f32]) -> Result<()> {
        self.inner.download(src, dst)
    }

    fn merkle_roots(&mut self, bufs: &[(&O::Buf, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        self.inner.merkle_roots(bufs)
    }

    op::operations!(traced);
}
