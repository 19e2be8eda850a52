//! The likeliest token at chosen places of a micro-batch, for which the logits must exist whole.

use super::gpt2::Gpt2;
use crate::ops::{CopyPart, DecodeLinear, LinearShape, Ops, Result, Role};

/// Places whose logits exist at a time.
const PLACES: usize = 32;

/// Room for the logits of some places at a time.
pub struct LogitRows<B> {
    /// (32, C), activation.
    normed: B,
    /// (32, V), f32.
    logits: B,
}

impl<O: Ops> Gpt2<O> {
    /// Room for [`Gpt2::likeliest`].
    pub fn logit_rows(&self, ops: &mut O) -> Result<LogitRows<O::Buf>> {
        Ok(LogitRows {
            normed: ops.alloc(Role::Activation, PLACES * self.config.channels)?,
            logits: ops.alloc(Role::F32, PLACES * self.config.vocab_padded)?,
        })
    }

    /// The token with the largest logit, the first of equals, after each of `places` (`b*T + t`) of the
    /// micro-batch that [`Gpt2::forward`] has read last. Logits are f32 sums of their own order, as in
    /// decoding: not to the bit those of the loss.
    pub fn likeliest(&self, ops: &mut O, room: &mut LogitRows<O::Buf>, places: &[usize]) -> Result<Vec<u16>> {
        let (c, vocab, padded) = (self.config.channels, self.config.vocab, self.config.vocab_padded);
        let normed = self.acts.ln_f.output(None);
        let mut host = vec![0.0f32; PLACES.min(places.len()) * padded];
        let mut found = Vec::with_capacity(places.len());
        for places in places.chunks(PLACES) {
            for (i, place) in places.iter().enumerate() {
                let dst = &mut room.normed;
                ops.copy(CopyPart { dst, at: i * c, src: normed, from: place * c, len: c })?;
            }
            ops.decode_linear(DecodeLinear {
                out: &mut room.logits,
                x: &room.normed,
                weight: &self.params.wte,
                bias: None,
                function: None,
                shape: LinearShape { rows: places.len(), c_in: c, c_out: padded },
            })?;
            let logits = &mut host[..places.len() * padded];
            ops.download(&room.logits, logits)?;
            found.extend(logits.chunks_exact(padded).map(|row| first_largest(&row[..vocab])));
        }
        Ok(found)
    }
}

fn first_largest(logits: &[f32]) -> u16 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u16
}
