//! One element at a time: copies, sums of tensors.

use super::outline::Outlined;
use super::{ElementBytes, Family, Operation, Work};

/// `dst[at..at + len] = src[from..from + len]`, both of one element type.
pub struct CopyPart<'a, B> {
    pub dst: &'a mut B,
    pub at: usize,
    pub src: &'a B,
    pub from: usize,
    pub len: usize,
}

impl<B> Operation for CopyPart<'_, B> {
    fn family(&self) -> Family {
        Family::Host
    }

    fn label(&self) -> String {
        "copy".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(2 * self.len)
    }
}

/// `dst += src`, f32, of one length: the tree over virtual workers.
pub struct Add<'a, B> {
    pub dst: &'a mut B,
    pub src: &'a B,
}

impl<B> Outlined<B> for Add<'_, B> {}

impl<B> Operation for Add<'_, B> {
    fn family(&self) -> Family {
        Family::Sum
    }

    fn label(&self) -> String {
        "sum of workers".into()
    }

    /// Nothing is counted: the length is known to the device alone.
    fn work(&self, _: ElementBytes) -> Work {
        Work::default()
    }
}

/// `dst[at..at + len] += src[from..from + len]`, f32; `at` and `from` are multiples of 4.
pub struct AddPart<'a, B> {
    pub dst: &'a mut B,
    pub at: usize,
    pub src: &'a B,
    pub from: usize,
    pub len: usize,
}

impl<B> Outlined<B> for AddPart<'_, B> {}

impl<B> Operation for AddPart<'_, B> {
    fn family(&self) -> Family {
        Family::Sum
    }

    fn label(&self) -> String {
        "sum of workers".into()
    }

    fn work(&self, _: ElementBytes) -> Work {
        Work::bytes(12.0 * self.len as f64)
    }
}
