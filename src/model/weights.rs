//! The parameter tensors of a model, as a structure generic over what is kept for each of them.
//!
//! One [`Weights<T>`] serves for shapes (`ParamSpec`), parameters and gradients, so that all of them are
//! walked in the same order: `wte`, `wpe`, the layers, `ln_f`, `lm_head`. The tensors of a block, with their
//! names, shapes and initialisation, are declared once, in the descriptions below; which of them a model
//! lacks follows from its keys.

use std::fmt;

use crate::experiment::{Model, PositionKind};
use crate::optim::{ParamKind, Parameter};

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
    pub kind: ParamKind,
    pub init: Init,
}

impl ParamSpec {
    /// The parameter as the optimizer sees it.
    pub fn parameter(&self) -> Parameter<'_> {
        Parameter { id: self.id, kind: self.kind, shape: &self.shape }
    }

    /// Elements of the logical tensor: a prefix of the `len` in memory.
    pub fn logical_len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Declares a structure of tensors, and all that follows from its fields: their order, walks over them,
/// and a structure of the same form made from them.
///
/// A field is one tensor (`T`), one that some models lack (`(T)`), a structure of tensors, or a list of
/// structures in brackets. What stands behind `=` gives its [`ParamSpec`]s, evaluated in the order of the
/// fields, which is the model's order.
macro_rules! tensors {
    (
        $(#[$doc:meta])*
        $name:ident($specs:ident: &mut Specs $(, $arg:ident: $arg_type:ty)*) {
            $($(#[$field_doc:meta])* $field:ident: $kind:tt = $spec:expr,)+
        }
    ) => {
        $(#[$doc])*
        pub struct $name<T> {
            $($(#[$field_doc])* pub $field: tensors!(@type T, $kind),)+
        }

        // Not derived: `derive` takes no field whose type a macro gives.
        impl<T: Clone> Clone for $name<T> {
            fn clone(&self) -> Self {
                $name { $($field: self.$field.clone()),+ }
            }
        }

        impl<T: fmt::Debug> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))$(.field(stringify!($field), &self.$field))+.finish()
            }
        }

        impl $name<ParamSpec> {
            fn specs($specs: &mut Specs $(, $arg: $arg_type)*) -> Self {
                $(let $field = $spec;)+
                $name { $($field),+ }
            }
        }

        impl<T> $name<T> {
            fn each<'a>(&'a self, see: &mut dyn FnMut(&'a T)) {
                $(tensors!(@each $kind, each, &self.$field, see);)+
            }

            fn each_mut<'a>(&'a mut self, see: &mut dyn FnMut(&'a mut T)) {
                $(tensors!(@each $kind, each_mut, &mut self.$field, see);)+
            }

            fn into_each(self, see: &mut dyn FnMut(T)) {
                $(tensors!(@into $kind, self.$field, see);)+
            }

            fn try_map_each<U, E>(
                &self,
                make: &mut dyn FnMut(&T) -> Result<U, E>,
            ) -> Result<$name<U>, E> {
                Ok($name { $($field: tensors!(@map $kind, &self.$field, make),)+ })
            }
        }
    };
    (@type $t:ident, T) => { $t };
    (@type $t:ident, (T)) => { Option<$t> };
    (@type $t:ident, [$part:ident]) => { Vec<$part<$t>> };
    (@type $t:ident, $part:ident) => { $part<$t> };
    (@each T, $each:ident, $field:expr, $see:ident) => { $see($field) };
    (@each (T), $each:ident, $field:expr, $see:ident) => {
        if let Some(tensor) = $field {
            $see(tensor);
        }
    };
    (@each [$part:ident], $each:ident, $field:expr, $see:ident) => {
        for part in $field {
            part.$each($see);
        }
    };
    (@each $part:ident, $each:ident, $field:expr, $see:ident) => { $part::$each($field, $see) };
    (@into T, $field:expr, $see:ident) => { $see($field) };
    (@into (T), $field:expr, $see:ident) => {
        if let Some(tensor) = $field {
            $see(tensor);
        }
    };
    (@into [$part:ident], $field:expr, $see:ident) => {
        for part in $field {
            part.into_each($see);
        }
    };
    (@into $part:ident, $field:expr, $see:ident) => { $part::into_each($field, $see) };
    (@map T, $field:expr, $make:ident) => { $make($field)? };
    (@map (T), $field:expr, $make:ident) => { $field.as_ref().map(&mut *$make).transpose()? };
    (@map [$part:ident], $field:expr, $make:ident) => {
        $field.iter().map(|part| part.try_map_each($make)).collect::<Result<_, E>>()?
    };
    (@map $part:ident, $field:expr, $make:ident) => { $part::try_map_each($field, $make)? };
}

tensors! {
    /// A weight with its bias, or the vectors of a norm.
    Affine(specs: &mut Specs, name: &str, weight_shape: &[usize], start: Init, bias: bool) {
        weight: T = specs.tensor(format!("{name}.weight"), weight_shape, start),
        /// As long as the weight has rows; absent without `model.bias`.
        bias: (T) = bias.then(|| specs.tensor(format!("{name}.bias"), &weight_shape[..1], Init::Zeros)),
    }
}

tensors! {
    /// The weights of the RMSNorm of queries and keys, one for all heads.
    HeadNorms(specs: &mut Specs, l: usize, model: &Model) {
        /// (HS); absent without `model.qk_norm`, as the next is.
        query: (T) = specs.head_norm(model, format!("h.{l}.attn.q_norm.weight")),
        /// (HS)
        key: (T) = specs.head_norm(model, format!("h.{l}.attn.k_norm.weight")),
    }
}

tensors! {
    /// The tensors of one transformer block. Number `l`; the initialisation of the projections into the
    /// residual stream. C channels, F of the MLP.
    Block(specs: &mut Specs, l: usize, model: &Model, into_residual: Init) {
        /// (C)
        ln_1: Affine = specs.norm(model, format!("h.{l}.ln_1")),
        /// ((NH + 2 KH) HS, C): query, key and value projections.
        qkv: Affine = {
            let (c, kv) = (model.channels, model.kv_heads() * model.head_size());
            specs.linear(model, format!("h.{l}.attn.c_attn"), [c + 2 * kv, c], NORMAL).of_layers([c, kv, kv])
        },
        head_norms: HeadNorms = HeadNorms::specs(specs, l, model),
        /// (C, C)
        attn_proj: Affine = {
            let c = model.channels;
            specs.linear(model, format!("h.{l}.attn.c_proj"), [c, c], into_residual)
        },
        /// (C)
        ln_2: Affine = specs.norm(model, format!("h.{l}.ln_2")),
        /// (F, C); of SwiGLU (2F, C), gate and factor in turns.
        fc: Affine = {
            let shape = [model.mlp_inputs(), model.channels];
            specs.linear(model, format!("h.{l}.mlp.c_fc"), shape, NORMAL)
        },
        /// (C, F)
        fc_proj: Affine = {
            let shape = [model.channels, model.mlp_channels()];
            specs.linear(model, format!("h.{l}.mlp.c_proj"), shape, into_residual)
        },
    }
}

tensors! {
    /// One `T` for each parameter tensor.
    Weights(specs: &mut Specs, model: &Model) {
        /// Token table (V, C), tied to the classifier unless there is `lm_head`; in memory with its padding
        /// rows.
        wte: T = specs.table("wte.weight", [model.vocab, model.channels], model.vocab_padded),
        /// Position table (context, C); absent where positions are rotary.
        wpe: (T) = (model.positions == PositionKind::Learned)
            .then(|| specs.table("wpe.weight", [model.context, model.channels], model.context)),
        layers: [Block] = {
            // GPT-2's, narrower by the root of the number of projections.
            let into_residual = Init::Normal(0.02 / libm::sqrt(2.0 * model.layers as f64));
            (0..model.layers).map(|l| Block::specs(specs, l, model, into_residual)).collect()
        },
        ln_f: Affine = specs.norm(model, "ln_f".into()),
        /// The classifier (V, C) where it is not tied to the token table; in memory with its padding rows.
        lm_head: (T) = (!model.tied_head).then(|| {
            let table = specs.table("lm_head.weight", [model.vocab, model.channels], model.vocab_padded);
            ParamSpec { kind: ParamKind::Head, ..table }
        }),
    }
}

impl Affine<ParamSpec> {
    /// The weight is that of three layers of one input, with these outputs.
    fn of_layers(mut self, rows: [usize; 3]) -> Self {
        self.weight.kind = ParamKind::Matrix { rows };
        self
    }
}

impl<T> Weights<T> {
    /// The classifier: `lm_head`, or the token table that stands for it.
    pub fn classifier(&self) -> &T {
        self.lm_head.as_ref().unwrap_or(&self.wte)
    }
}

/// GPT-2's N(0, 0.02).
const NORMAL: Init = Init::Normal(0.02);

/// Numbers the tensors as they are listed.
#[derive(Default)]
struct Specs {
    next_id: u32,
}

impl Specs {
    fn tensor(&mut self, name: String, shape: &[usize], init: Init) -> ParamSpec {
        let id = self.next_id;
        self.next_id += 1;
        let kind = match shape {
            [rows, _] => ParamKind::Matrix { rows: [*rows, 0, 0] },
            _ => ParamKind::Vector,
        };
        ParamSpec { id, name, shape: shape.to_vec(), len: shape.iter().product(), kind, init }
    }

    /// A linear layer with weights of this shape, (out, in).
    fn linear(&mut self, model: &Model, name: String, shape: [usize; 2], start: Init) -> Affine<ParamSpec> {
        Affine::specs(self, &name, &shape, start, model.bias)
    }

    /// A norm over the channels.
    fn norm(&mut self, model: &Model, name: String) -> Affine<ParamSpec> {
        Affine::specs(self, &name, &[model.channels], Init::Ones, model.bias)
    }

    /// A norm over the channels of a head.
    fn head_norm(&mut self, model: &Model, name: String) -> Option<ParamSpec> {
        model.qk_norm.then(|| self.tensor(name, &[model.head_size()], Init::Ones))
    }

    /// A table of normal numbers with `rows` rows in memory.
    fn table(&mut self, name: &str, shape: [usize; 2], rows: usize) -> ParamSpec {
        let spec = self.tensor(name.into(), &shape, NORMAL);
        ParamSpec { len: rows * shape[1], kind: ParamKind::Table, ..spec }
    }
}

/// Tensors whose gradients are whole at the same time: the unit in which they are added up and exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// `wte` and `wpe`: the last to be whole.
    Tables,
    /// A transformer block.
    Block(usize),
    /// `ln_f`, and `lm_head` where there is one: the first to be whole.
    Head,
}

impl Group {
    /// The groups of a model with this many blocks, in the model's order.
    pub fn all(layers: usize) -> impl DoubleEndedIterator<Item = Group> {
        [Group::Tables].into_iter().chain((0..layers).map(Group::Block)).chain([Group::Head])
    }
}

impl<T> Weights<T> {
    /// What is kept for block `l`. Where it is kept for fewer blocks than there are, they use it in turn.
    pub fn block_mut(&mut self, l: usize) -> &mut Block<T> {
        let kept = self.layers.len();
        &mut self.layers[l % kept]
    }

    /// The tensors of a group in the model's order.
    pub fn group(&self, group: Group) -> Vec<&T> {
        let mut all = Vec::new();
        let mut see = |tensor| all.push(tensor);
        match group {
            Group::Tables => [&self.wte].into_iter().chain(&self.wpe).for_each(see),
            Group::Block(l) => self.layers[l % self.layers.len()].each(&mut see),
            Group::Head => {
                self.ln_f.each(&mut see);
                self.lm_head.iter().for_each(see);
            }
        }
        all
    }

    /// The tensors of a group in the model's order.
    pub fn group_mut(&mut self, group: Group) -> Vec<&mut T> {
        let mut all = Vec::new();
        let mut see = |tensor| all.push(tensor);
        match group {
            Group::Tables => [&mut self.wte].into_iter().chain(&mut self.wpe).for_each(see),
            Group::Block(l) => self.block_mut(l).each_mut(&mut see),
            Group::Head => {
                self.ln_f.each_mut(&mut see);
                self.lm_head.iter_mut().for_each(see);
            }
        }
        all
    }

    /// The same of the first blocks alone.
    pub fn with_blocks(mut self, blocks: usize) -> Weights<T> {
        self.layers.truncate(blocks);
        self
    }

    /// All tensors in the model's order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut all = Vec::new();
        self.each(&mut |tensor| all.push(tensor));
        all.into_iter()
    }

    /// All tensors in the model's order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let mut all = Vec::new();
        self.each_mut(&mut |tensor| all.push(tensor));
        all.into_iter()
    }

    /// All tensors in the model's order.
    pub fn into_tensors(self) -> Vec<T> {
        let mut all = Vec::new();
        self.into_each(&mut |tensor| all.push(tensor));
        all
    }

    /// One new `U` for each tensor, made in the model's order; the first error ends it.
    pub fn try_map<U, E>(&self, mut make: impl FnMut(&T) -> Result<U, E>) -> Result<Weights<U>, E> {
        self.try_map_each(&mut make)
    }
}

impl Weights<ParamSpec> {
    /// Every tensor of the model, with its initialisation.
    pub fn of(model: &Model) -> Weights<ParamSpec> {
        Weights::specs(&mut Specs::default(), model)
    }

    /// Parameters of the model with the padding rows of its tables, as llm.c counts them.
    pub fn parameters(&self) -> u64 {
        self.iter().map(|s| s.len as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reference::gpt2;

    #[test]
    fn gpt2_sizes_have_the_parameter_counts_of_llm_c() {
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
