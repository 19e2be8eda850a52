//! A device without memory: it computes nothing, and remembers what was asked of it.
//!
//! The model is written once over [`Ops`], so running it here tells exactly which buffers it takes and,
//! under [`super::timed::Timed`], which operations it does on which shapes: what `runner plan` counts, in
//! milliseconds, for a model that would fill a GPU. Downloads give zeros. Nothing is checked: shapes are the
//! other devices' affair.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::{
    AdamW, Dtype, Heads, KvCache, Ops, ParamSlot, Places, Result, Role, Rows, ScratchShape, Vocab, Write,
};

/// A device that only takes notes.
#[derive(Clone, Debug)]
pub struct Dry {
    /// Element type of weights and activations.
    dtype: Dtype,
    /// Bytes of every buffer so far, in order; token ids too.
    pub taken: Vec<u64>,
    /// The same, of what would lie in the host's memory.
    pub taken_of_host: Vec<u64>,
}

impl Dry {
    /// A device that would store weights and activations as `dtype`.
    pub fn new(dtype: Dtype) -> Dry {
        Dry { dtype, taken: Vec::new(), taken_of_host: Vec::new() }
    }
}

/// A buffer's length; there are no elements.
#[derive(Clone, Copy, Debug)]
pub struct Len(pub usize);

impl Ops for Dry {
    type Buf = Len;
    type Ids = Len;

    fn device_name(&self) -> String {
        "no device".to_owned()
    }

    fn dtype(&self, role: Role) -> Dtype {
        if role == Role::F32 { Dtype::F32 } else { self.dtype }
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<Len> {
        self.taken.push((len * self.dtype(role).size()) as u64);
        Ok(Len(len))
    }

    fn alloc_host(&mut self, len: usize) -> Result<Len> {
        self.taken_of_host.push(4 * len as u64);
        Ok(Len(len))
    }

    fn alloc_ids(&mut self, len: usize) -> Result<Len> {
        self.taken.push(2 * len as u64);
        Ok(Len(len))
    }

    fn alloc_scratch(&mut self, _: &ScratchShape) -> Result<()> {
        Ok(())
    }

    fn upload_ids(&mut self, _: &mut Len, _: &[u16]) -> Result<()> {
        Ok(())
    }

    fn upload(&mut self, _: &mut Len, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn download(&mut self, _: &Len, dst: &mut [f32]) -> Result<()> {
        dst.fill(0.0);
        Ok(())
    }

    fn read_at(&mut self, _: &Len, _: usize, dst: &mut [u8]) -> Result<()> {
        dst.fill(0);
        Ok(())
    }

    fn write_at(&mut self, _: &mut Len, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn embedding(&mut self, _: &mut Len, _: &Len, _: &Len, _: &Len, _: Rows, _: usize) -> Result<()> {
        Ok(())
    }

    fn layernorm(
        &mut self,
        _: &mut Len,
        _: &mut Len,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn residual_layernorm(
        &mut self,
        _: &mut Len,
        _: &mut Len,
        _: &mut Len,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn linear(
        &mut self,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: Option<&Len>,
        _: usize,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn linear_gelu(
        &mut self,
        _: &mut Len,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn gelu(&mut self, _: &mut Len, _: &Len, _: usize) -> Result<()> {
        Ok(())
    }

    fn attention(&mut self, _: &mut Len, _: &mut Len, _: &Len, _: Rows, _: Heads) -> Result<()> {
        Ok(())
    }

    fn classifier_loss(
        &mut self,
        _: &mut Len,
        _: usize,
        _: &Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
        _: Vocab,
    ) -> Result<()> {
        Ok(())
    }

    fn copy(&mut self, _: &mut Len, _: usize, _: &Len, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn decode_embedding(
        &mut self,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn decode_linear(
        &mut self,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: Option<&Len>,
        _: bool,
        _: usize,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn decode_attention(
        &mut self,
        _: &mut Len,
        _: KvCache<'_, Len>,
        _: &Len,
        _: Places<'_, Len>,
        _: usize,
        _: Heads,
    ) -> Result<()> {
        Ok(())
    }

    fn classifier(
        &mut self,
        _: &mut Len,
        _: usize,
        _: &mut Len,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
        _: Vocab,
        _: f32,
        _: Write,
    ) -> Result<()> {
        Ok(())
    }

    fn layernorm_backward(
        &mut self,
        _: &mut Len,
        _: Write,
        _: &mut Len,
        _: &mut Len,
        _: Write,
        _: &Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn linear_backward_input(
        &mut self,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn linear_backward_input_gelu(
        &mut self,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn linear_backward_weight(
        &mut self,
        _: &mut Len,
        _: Option<&mut Len>,
        _: &Len,
        _: &Len,
        _: usize,
        _: usize,
        _: usize,
        _: Write,
    ) -> Result<()> {
        Ok(())
    }

    fn attention_backward(
        &mut self,
        _: &mut Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: &Len,
        _: Rows,
        _: Heads,
    ) -> Result<()> {
        Ok(())
    }

    fn embedding_backward(
        &mut self,
        _: &mut Len,
        _: &mut Len,
        _: Write,
        _: &Len,
        _: &Len,
        _: Rows,
        _: usize,
    ) -> Result<()> {
        Ok(())
    }

    fn sum_squares(&mut self, bufs: &[&Len]) -> Result<Vec<f64>> {
        Ok(vec![0.0; bufs.len()])
    }

    fn adamw(&mut self, _: &mut [ParamSlot<'_, Self>], _: &AdamW) -> Result<()> {
        Ok(())
    }

    fn add(&mut self, _: &mut Len, _: &Len) -> Result<()> {
        Ok(())
    }

    fn add_part(&mut self, _: &mut Len, _: usize, _: &Len, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn chunk(&self) -> usize {
        2048
    }

    fn chunk_squares(&mut self, parts: &[(&Len, Range<usize>)]) -> Result<Vec<f64>> {
        Ok(vec![0.0; parts.iter().map(|(_, part)| part.len().div_ceil(self.chunk())).sum()])
    }

    fn fold_squares(&self, _: &[f64]) -> f64 {
        0.0
    }
}
