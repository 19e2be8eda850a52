//! The training state as named tensors: all that the next step reads, and nothing else.
//!
//! This list is what a checkpoint holds and what the state digest covers. Parameters bear their own
//! names; AdamW's moments are `adam_m/…` and `adam_v/…`, fp32 masters `master/…`, the guards' memory
//! `guard/…`, the counters `train/…`.

use std::collections::BTreeMap;

use super::TrainError;
use super::trainer::Trainer;
use crate::model::{Gpt2, ParamSpec, Weights};
use crate::ops::{Dtype, Ops, Result, Role};
use crate::optim::guards::Window;
use crate::proof::{self, Hash};
use crate::store::{Tensor, checkpoint};

type Saved = BTreeMap<String, Tensor>;

impl<O: Ops> Trainer<O> {
    /// A copy of the whole state, sorted by name.
    pub fn state(&mut self) -> Result<Vec<Tensor>> {
        let mut state = self.host_state();
        for t in device_tensors(&self.ops, &self.model, [&self.adam_m, &self.adam_v], self.masters.as_ref()) {
            let mut bytes = vec![0; t.bytes];
            self.ops.read_bytes(t.buf, &mut bytes)?;
            state.push(Tensor { name: t.name, dtype: t.dtype, shape: t.spec.shape.clone(), bytes });
        }
        state.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(state)
    }

    /// SHA-256 root of the state, as `docs/digest.md` specifies. Hashed where the tensors are when the
    /// device can; else copied to the host one tensor at a time.
    pub fn state_root(&mut self) -> Result<Hash> {
        let tensors = device_tensors(&self.ops, &self.model, [&self.adam_m, &self.adam_v], self.masters.as_ref());
        let bufs: Vec<(&O::Buf, usize)> = tensors.iter().map(|t| (t.buf, t.bytes)).collect();
        let roots: Vec<Hash> = match self.ops.merkle_roots(&bufs)? {
            Some(roots) => roots.into_iter().map(Hash).collect(),
            None => {
                let mut bytes = Vec::new();
                let mut hash = |&(buf, len): &(&O::Buf, usize)| {
                    bytes.resize(len, 0);
                    self.ops.read_bytes(buf, &mut bytes)?;
                    Ok(proof::merkle_root(&bytes))
                };
                bufs.iter().map(&mut hash).collect::<Result<_>>()?
            }
        };
        let mut digests: Vec<(String, Hash)> = tensors
            .into_iter()
            .zip(roots)
            .map(|(t, root)| {
                let shape: Vec<u64> = t.spec.shape.iter().map(|&d| d as u64).collect();
                let digest = proof::tensor_digest_from_root(&t.name, t.dtype.name(), &shape, t.bytes as u64, &root);
                (t.name, digest)
            })
            .collect();
        digests.extend(self.host_state().into_iter().map(|t| {
            let digest = checkpoint::digest(&t);
            (t.name, digest)
        }));
        let named = digests.iter().map(|(name, digest)| (name.as_str(), *digest));
        Ok(proof::state_root(named).expect("the state's names are unique"))
    }

    /// Puts a saved state in place of the present one.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, is not of this model, or has another dtype or shape; then the
    /// present state is not to be used any more.
    pub fn restore(&mut self, state: Vec<Tensor>) -> Result<(), TrainError> {
        let mut saved: Saved = state.into_iter().map(|t| (t.name.clone(), t)).collect();
        self.restore_host_state(&mut saved)?;
        let param = self.ops.dtype(Role::Param);
        let groups = [
            ("", param, Some(&mut self.model.params)),
            ("adam_m/", Dtype::F32, Some(&mut self.adam_m)),
            ("adam_v/", Dtype::F32, Some(&mut self.adam_v)),
            ("master/", Dtype::F32, self.masters.as_mut()),
        ];
        for (prefix, dtype, weights) in groups {
            let Some(weights) = weights else { continue };
            for (spec, buf) in self.model.specs.iter().zip(weights.iter_mut()) {
                let tensor = take(&mut saved, &format!("{prefix}{}", spec.name), dtype, &spec.shape)?;
                self.ops.write_bytes(buf, &tensor.bytes)?;
            }
        }
        match saved.into_keys().next() {
            Some(name) => Err(TrainError::State { tensor: name, problem: "does not belong to this experiment".into() }),
            None => Ok(()),
        }
    }

    fn host_state(&self) -> Vec<Tensor> {
        let p = &self.progress;
        vec![
            counter("train/step", p.step),
            counter("train/updates", p.updates),
            counter("train/data_offset", p.data_offset),
            counter("guard/skips_in_a_row", p.guards.skips_in_a_row),
            window("guard/loss_window", &p.guards.loss),
            window("guard/grad_window", &p.guards.grad),
        ]
    }

    fn restore_host_state(&mut self, saved: &mut Saved) -> Result<(), TrainError> {
        let size = self.progress.guards.window_size();
        let p = &mut self.progress;
        p.step = take_counter(saved, "train/step")?;
        p.updates = take_counter(saved, "train/updates")?;
        p.data_offset = take_counter(saved, "train/data_offset")?;
        p.guards.skips_in_a_row = take_counter(saved, "guard/skips_in_a_row")?;
        p.guards.loss = take_window(saved, "guard/loss_window", size)?;
        p.guards.grad = take_window(saved, "guard/grad_window", size)?;
        Ok(())
    }
}

/// A tensor of the state that lives on the device.
struct DeviceTensor<'a, O: Ops> {
    name: String,
    dtype: Dtype,
    spec: &'a ParamSpec,
    /// Bytes of the logical tensor: padding rows are not part of the state.
    bytes: usize,
    buf: &'a O::Buf,
}

/// Parameters, moments and masters under their state names.
fn device_tensors<'a, O: Ops>(
    ops: &O,
    model: &'a Gpt2<O>,
    [adam_m, adam_v]: [&'a Weights<O::Buf>; 2],
    masters: Option<&'a Weights<O::Buf>>,
) -> Vec<DeviceTensor<'a, O>> {
    let groups = [
        ("", ops.dtype(Role::Param), Some(&model.params)),
        ("adam_m/", Dtype::F32, Some(adam_m)),
        ("adam_v/", Dtype::F32, Some(adam_v)),
        ("master/", Dtype::F32, masters),
    ];
    groups
        .into_iter()
        .filter_map(|(prefix, dtype, weights)| Some((prefix, dtype, weights?)))
        .flat_map(|(prefix, dtype, weights)| {
            model.specs.iter().zip(weights.iter()).map(move |(spec, buf)| DeviceTensor {
                name: format!("{prefix}{}", spec.name),
                dtype,
                spec,
                bytes: spec.logical_len() * dtype.size(),
                buf,
            })
        })
        .collect()
}

fn counter(name: &str, value: u64) -> Tensor {
    Tensor { name: name.into(), dtype: Dtype::U64, shape: vec![], bytes: value.to_le_bytes().to_vec() }
}

/// A window of the guards: its accepted values, oldest first, as long as it is filled.
fn window(name: &str, window: &Window) -> Tensor {
    let bytes: Vec<u8> = window.values().flat_map(f64::to_le_bytes).collect();
    Tensor { name: name.into(), dtype: Dtype::F64, shape: vec![bytes.len() / 8], bytes }
}

fn take(saved: &mut Saved, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Tensor, TrainError> {
    let tensor = take_any(saved, name)?;
    if tensor.dtype != dtype || tensor.shape != shape {
        let problem = format!("is {} {:?}, this experiment needs {dtype} {shape:?}", tensor.dtype, tensor.shape);
        return Err(TrainError::State { tensor: name.into(), problem });
    }
    Ok(tensor)
}

fn take_any(saved: &mut Saved, name: &str) -> Result<Tensor, TrainError> {
    saved.remove(name).ok_or_else(|| TrainError::State { tensor: name.into(), problem: "is missing".into() })
}

fn take_counter(saved: &mut Saved, name: &str) -> Result<u64, TrainError> {
    let tensor = take(saved, name, Dtype::U64, &[])?;
    let bytes: [u8; 8] = tensor.bytes.as_slice().try_into().expect("the shape says eight bytes");
    Ok(u64::from_le_bytes(bytes))
}

fn take_window(saved: &mut Saved, name: &str, size: usize) -> Result<Window, TrainError> {
    let tensor = take_any(saved, name)?;
    if tensor.dtype != Dtype::F64 || tensor.shape.len() != 1 || tensor.shape[0] > size {
        let problem = format!("is {} {:?}, expected F64 with at most {size} values", tensor.dtype, tensor.shape);
        return Err(TrainError::State { tensor: name.into(), problem });
    }
    let values: Vec<f64> =
        tensor.bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("chunks of eight"))).collect();
    Ok(Window::from_values(size, &values))
}
