//! The parameter tensors of GPT-2, as a structure generic over what is kept for each of them.
//!
//! One [`Weights<T>`] serves for shapes (`ParamSpec`), parameters and gradients, so that all of them are
//! walked in the same order: `wte`, `wpe`, the layers, `ln_f`. The tensors of a block, with their names,
//! shapes and initialisation, are declared once, in the descriptions below.

use std::fmt;

use crate::experiment::Model;
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
/// A field is one tensor (`T`), a structure of tensors, or a list of structures in brackets. What stands
/// behind `=` gives its [`ParamSpec`]s, evaluated in the order of the fields, which is the model's order.
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
            fn each<'a>(&'a self, see: &mut impl FnMut(&'a T)) {
                $(tensors!(@each $kind, each, &self.$field, see);)+
            }

            fn each_mut<'a>(&'a mut self, see: &mut impl FnMut(&'a mut T)) {
                $(tensors!(@each $kind, each_mut, &mut self.$field, see);)+
            }

            fn try_map_each<U, E>(
                &self,
                make: &mut impl FnMut(&T) -> Result<U, E>,
            ) -> Result<$name<U>, E> {
                Ok($name { $($field: tensors!(@map $kind, &self.$field, make),)+ })
            }
        }
    };
    (@type $t:ident, T) => { $t };
    (@type $t:ident, [$part:ident]) => { Vec<$part<$t>> };
    (@type $t:ident, $part:ident) => { $part<$t> };
    (@each T, $each:ident, $field:expr, $see:ident) => { $see($field) };
    (@each [$part:ident], $each:ident, $field:expr, $see:ident) => {
        for part in $field {
            part.$each($see);
        }
    };
    (@each $part:ident, $each:ident, $field:expr, $see:ident) => { $part::$each($field, $see) };
    (@map T, $field:expr, $make:ident) => { $make($field)? };
    (@map [$part:ident], $field:expr, $make:ident) => {
        $field.iter().map(|part| part.try_map_each($make)).collect::<Result<_, E>>()?
    };
    (@map $part:ident, $field:expr, $make:ident) => { $part::try_map_each($field, $make)? };
}

tensors! {
    /// A weight with its bias, or the two vectors of a layernorm.
    Affine(specs: &mut Specs, name: &str, weight_shape: &[usize], start: Init) {
        weight: T = specs.tensor(format!("{name}.weight"), weight_shape, start),
        /// As long as the weight has rows.
        bias: T = specs.tensor(format!("{name}.bias"), &weight_shape[..1], Init::Zeros),
    }
}

tensors! {
    /// The tensors of one transformer block. Number `l`, C channels; the initialisation of the projections
    /// into the residual stream.
    Block(specs: &mut Specs, l: usize, c: usize, into_residual: Init) {
        /// (C)
        ln_1: Affine = Affine::specs(specs, &format!("h.{l}.ln_1"), &[c], Init::Ones),
        /// (3C, C): query, key and value projections.
        qkv: Affine = Affine::specs(specs, &format!("h.{l}.attn.c_attn"), &[3 * c, c], NORMAL).of_layers(3),
        /// (C, C)
        attn_proj: Affine = Affine::specs(specs, &format!("h.{l}.attn.c_proj"), &[c, c], into_residual),
        /// (C)
        ln_2: Affine = Affine::specs(specs, &format!("h.{l}.ln_2"), &[c], Init::Ones),
        /// (4C, C)
        fc: Affine = Affine::specs(specs, &format!("h.{l}.mlp.c_fc"), &[4 * c, c], NORMAL),
        /// (C, 4C)
        fc_proj: Affine = Affine::specs(specs, &format!("h.{l}.mlp.c_proj"), &[c, 4 * c], into_residual),
    }
}

tensors! {
    /// One `T` for each parameter tensor.
    Weights(specs: &mut Specs, model: &Model) {
        /// Token table (V, C), tied to the classifier; in memory with its padding rows.
        wte: T = specs.table("wte.weight", [model.vocab, model.channels], model.vocab_padded),
        /// Position table (context, C).
        wpe: T = specs.table("wpe.weight", [model.context, model.channels], model.context),
        layers: [Block] = {
            // GPT-2's, narrower by the root of the number of projections.
            let into_residual = Init::Normal(0.02 / libm::sqrt(2.0 * model.layers as f64));
            (0..model.layers).map(|l| Block::specs(specs, l, model.channels, into_residual)).collect()
        },
        ln_f: Affine = Affine::specs(specs, "ln_f", &[model.channels], Init::Ones),
    }
}

impl Affine<ParamSpec> {
    /// The weight is that of several layers of one input.
    fn of_layers(mut self, stacked: usize) -> Self {
        self.weight.kind = ParamKind::Matrix { stacked };
        self
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
        let kind = if shape.len() == 2 { ParamKind::Matrix { stacked: 1 } } else { ParamKind::Vector };
        ParamSpec { id, name, shape: shape.to_vec(), len: shape.iter().product(), kind, init }
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
    /// `ln_f`: the first to be whole.
    FinalNorm,
}

impl Group {
    /// The groups of a model with this many blocks, in the model's order.
    pub fn all(layers: usize) -> impl DoubleEndedIterator<Item = Group> {
        [Group::Tables].into_iter().chain((0..layers).map(Group::Block)).chain([Group::FinalNorm])
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
            Group::Tables => [&self.wte, &self.wpe].into_iter().for_each(see),
            Group::Block(l) => self.layers[l % self.layers.len()].each(&mut see),
            Group::FinalNorm => self.ln_f.each(&mut see),
        }
        all
    }

    /// The tensors of a group in the model's order.
    pub fn group_mut(&mut self, group: Group) -> Vec<&mut T> {
        let mut all = Vec::new();
        let mut see = |tensor| all.push(tensor);
        match group {
            Group::Tables => [&mut self.wte, &mut self.wpe].into_iter().for_each(see),
            Group::Block(l) => self.block_mut(l).each_mut(&mut see),
            Group::FinalNorm => self.ln_f.each_mut(&mut see),
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

    /// Parameters of the model with the padding rows of `wte`, as llm.c counts them.
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
