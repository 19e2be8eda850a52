//! The parameter tensors of GPT-2, as a structure generic over what is kept for each of them.
//!
//! One [`Weights<T>`] serves for shapes (`ParamSpec`), parameters, gradients, moments and masters, so
//! that all of them are walked in the same order: `wte`, `wpe`, the layers, `ln_f`.

use crate::experiment::Model;

/// How a tensor is initialised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Ones,
    Zeros,
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
}

/// Name, shape and treatment of one parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Position in the model's order; the counter of initialisation and rounding.
    pub id: u32,
    /// Name in the state: Hugging Face's without the `transformer.` prefix.
    pub name: String,
    /// Logical shape, weights as (out, in). `wte` without its padding rows.
    pub shape: Vec<usize>,
    /// Elements in memory: `wte` has its padding rows, which are always zero.
    pub len: usize,
    /// Whether weight decay applies: 2-D tensors only.
    pub decay: bool,
    pub init: Init,
}

impl ParamSpec {
    /// Elements of the logical tensor: a prefix of the `len` in memory.
    pub fn logical_len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A weight with its bias, or the two vectors of a layernorm.
#[derive(Clone, Debug)]
pub struct Affine<T> {
    pub weight: T,
    pub bias: T,
}

/// The tensors of one transformer block.
#[derive(Clone, Debug)]
pub struct Layer<T> {
    pub ln_1: Affine<T>,
    /// (3C, C): query, key and value projections.
    pub qkv: Affine<T>,
    /// (C, C)
    pub attn_proj: Affine<T>,
    pub ln_2: Affine<T>,
    /// (4C, C)
    pub fc: Affine<T>,
    /// (C, 4C)
    pub fc_proj: Affine<T>,
}

/// One `T` for each parameter tensor.
#[derive(Clone, Debug)]
pub struct Weights<T> {
    /// Token table (V, C), tied to the classifier.
    pub wte: T,
    /// Position table (context, C).
    pub wpe: T,
    pub layers: Vec<Layer<T>>,
    pub ln_f: Affine<T>,
}

impl<T> Affine<T> {
    fn both(&self) -> [&T; 2] {
        [&self.weight, &self.bias]
    }

    fn both_mut(&mut self) -> [&mut T; 2] {
        [&mut self.weight, &mut self.bias]
    }
}

impl<T> Layer<T> {
    fn affines(&self) -> [&Affine<T>; 6] {
        [&self.ln_1, &self.qkv, &self.attn_proj, &self.ln_2, &self.fc, &self.fc_proj]
    }

    fn affines_mut(&mut self) -> [&mut Affine<T>; 6] {
        [&mut self.ln_1, &mut self.qkv, &mut self.attn_proj, &mut self.ln_2, &mut self.fc, &mut self.fc_proj]
    }
}

/// Tensors whose gradients are whole at the same time: the unit in which they are added up and exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// `wte` and `wpe`: the last to be whole.
    Tables,
    /// A transformer block.
    Block(usize),
    /// `ln_f`: the first to be whole.
    FinalNorm,
}

impl Group {
    /// The groups of a model with so many blocks, in the model's order.
    pub fn all(layers: usize) -> impl DoubleEndedIterator<Item = Group> {
        [Group::Tables].into_iter().chain((0..layers).map(Group::Block)).chain([Group::FinalNorm])
    }
}

impl<T> Weights<T> {
    /// What is kept for block `l`. Where it is kept for fewer blocks than there are, they use it in turn.
    pub fn block_mut(&mut self, l: usize) -> &mut Layer<T> {
        let kept = self.layers.len();
        &mut self.layers[l % kept]
    }

    /// The tensors of a group in the model's order.
    pub fn group(&self, group: Group) -> Vec<&T> {
        match group {
            Group::Tables => vec![&self.wte, &self.wpe],
            Group::Block(l) => {
                self.layers[l % self.layers.len()].affines().into_iter().flat_map(Affine::both).collect()
            }
            Group::FinalNorm => self.ln_f.both().into(),
        }
    }

    /// The tensors of a group in the model's order.
    pub fn group_mut(&mut self, group: Group) -> Vec<&mut T> {
        match group {
            Group::Tables => vec![&mut self.wte, &mut self.wpe],
            Group::Block(l) => {
                self.block_mut(l).affines_mut().into_iter().flat_map(Affine::both_mut).collect()
            }
            Group::FinalNorm => self.ln_f.both_mut().into(),
        }
    }

    /// The same of the first blocks alone.
    pub fn with_blocks(mut self, blocks: usize) -> Weights<T> {
        self.layers.truncate(blocks);
        self
    }

    /// All tensors in the model's order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.wte, &self.wpe]
            .into_iter()
            .chain(self.layers.iter().flat_map(|l| l.affines().into_iter().flat_map(Affine::both)))
            .chain(self.ln_f.both())
    }

    /// All tensors in the model's order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [&mut self.wte, &mut self.wpe]
            .into_iter()
            .chain(
                self.layers.iter_mut().flat_map(|l| l.affines_mut().into_iter().flat_map(Affine::both_mut)),
            )
            .chain(self.ln_f.both_mut())
    }

    /// One new `U` for each tensor, made in the model's order; the first error ends it.
    pub fn try_map<U, E>(&self, mut make: impl FnMut(&T) -> Result<U, E>) -> Result<Weights<U>, E> {
        fn affine<T, U, E>(a: &Affine<T>, make: &mut impl FnMut(&T) -> Result<U, E>) -> Result<Affine<U>, E> {
            Ok(Affine { weight: make(&a.weight)?, bias: make(&a.bias)? })
        }
        Ok(Weights {
            wte: make(&self.wte)?,
            wpe: make(&self.wpe)?,
            layers: self
                .layers
                .iter()
                .map(|l| {
                    Ok(Layer {
                        ln_1: affine(&l.ln_1, &mut make)?,
                        qkv: affine(&l.qkv, &mut make)?,
                        attn_proj: affine(&l.attn_proj, &mut make)?,
                        ln_2: affine(&l.ln_2, &mut make)?,
                        fc: affine(&l.fc, &mut make)?,
                        fc_proj: affine(&l.fc_proj, &mut make)?,
                    })
                })
                .collect::<Result<_, E>>()?,
            ln_f: affine(&self.ln_f, &mut make)?,
        })
    }
}

impl Weights<ParamSpec> {
    /// Every tensor of the model: GPT-2's initialisation, N(0, 0.02) with the projections into the
    /// residual stream scaled by `1/sqrt(2L)`.
    pub fn of(model: &Model) -> Weights<ParamSpec> {
        let c = model.channels;
        let residual = Init::Normal(0.02 / libm::sqrt(2.0 * model.layers as f64));
        let mut specs = Specs { next_id: 0 };
        Weights {
            wte: specs.table("wte.weight", [model.vocab, c], model.vocab_padded * c),
            wpe: specs.table("wpe.weight", [model.context, c], model.context * c),
            layers: (0..model.layers)
                .map(|l| Layer {
                    ln_1: specs.norm(&format!("h.{l}.ln_1"), c),
                    qkv: specs.linear(&format!("h.{l}.attn.c_attn"), [3 * c, c], Init::Normal(0.02)),
                    attn_proj: specs.linear(&format!("h.{l}.attn.c_proj"), [c, c], residual),
                    ln_2: specs.norm(&format!("h.{l}.ln_2"), c),
                    fc: specs.linear(&format!("h.{l}.mlp.c_fc"), [4 * c, c], Init::Normal(0.02)),
                    fc_proj: specs.linear(&format!("h.{l}.mlp.c_proj"), [c, 4 * c], residual),
                })
                .collect(),
            ln_f: specs.norm("ln_f", c),
        }
    }

    /// Parameters of the model with the padding rows of `wte`, as the reference counts them.
    pub fn parameters(&self) -> u64 {
        self.iter().map(|s| s.len as u64).sum()
    }
}

/// Numbers the tensors as they are listed.
struct Specs {
    next_id: u32,
}

impl Specs {
    fn spec(&mut self, name: String, shape: &[usize], len: usize, init: Init) -> ParamSpec {
        let id = self.next_id;
        self.next_id += 1;
        ParamSpec { id, name, shape: shape.to_vec(), len, decay: shape.len() == 2, init }
    }

    fn table(&mut self, name: &str, shape: [usize; 2], len: usize) -> ParamSpec {
        self.spec(name.into(), &shape, len, Init::Normal(0.02))
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], init: Init) -> Affine<ParamSpec> {
        Affine {
            weight: self.spec(format!("{name}.weight"), &shape, shape[0] * shape[1], init),
            bias: self.spec(format!("{name}.bias"), &shape[..1], shape[0], Init::Zeros),
        }
    }

    fn norm(&mut self, name: &str, c: usize) -> Affine<ParamSpec> {
        Affine {
            weight: self.spec(format!("{name}.weight"), &[c], c, Init::Ones),
            bias: self.spec(format!("{name}.bias"), &[c], c, Init::Zeros),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpt2(layers: usize, heads: usize, channels: usize) -> Model {
        Model {
            init: None,
            descriptor: None,
            layers,
            heads,
            channels,
            context: 1024,
            vocab: 50257,
            vocab_padded: 50304,
        }
    }

    #[test]
    fn the_reference_sizes_have_the_reference_parameter_counts() {
        assert_eq!(Weights::of(&gpt2(12, 12, 768)).parameters(), 124_475_904);
        assert_eq!(Weights::of(&gpt2(48, 25, 1600)).parameters(), 1_557_686_400);
    }

    #[test]
    fn ids_follow_the_order_of_iteration_and_names_are_unique() {
        let weights = Weights::of(&gpt2(3, 2, 16));
        let ids: Vec<u32> = weights.iter().map(|s| s.id).collect();
        assert_eq!(ids, (0..2 + 12 * 3 + 2).collect::<Vec<u32>>());
        let mut names: Vec<&str> = weights.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ids.len());
    }
}
