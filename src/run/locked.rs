//! Devices that report what their bits depend on, and can be set to a lock's choices.

use super::data::remembered;
use super::sensors;
use crate::ops::cpu::{self, Cpu};
use crate::ops::cuda::Cuda;
use crate::ops::cuda::compile::{CodeOrigin, Cubin};
use crate::ops::cuda::libraries::{self, Library};
use crate::ops::mirror::{self, Mirror};
use crate::ops::{DeviceError, Ops, Result};
use crate::parallel::{Exchange, ExchangeError, Hosted, Tcp, nccl};
use crate::proof::lock::Table;

/// Names the arithmetic of a Hopper GPU and its mirror in `numerics`.
pub const ARITHMETIC_KEY: &str = "cuda.arithmetic";

/// What a device adds to a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// What its bits depend on: equal values mean equal bits.
    pub numerics: Table,
    /// Other facts about it, on which no bit depends.
    pub environment: Table,
}

/// How a device's tensors are sent to other ranks, and a description of it where there are several.
pub type Joined<O> = (Box<dyn Exchange<O>>, Option<String>);

/// A device that reports what its bits depend on, and can be set to a lock's choices.
pub trait Locked: Ops {
    /// Complete once the trainer has allocated everything.
    fn facts(&self) -> Result<DeviceFacts>;

    /// Takes choices that were made when the lock was (the algorithms of matrix multiplications), before
    /// the trainer allocates anything.
    fn pin(&mut self, numerics: &Table) -> Result<()>;

    /// Joins the devices of all ranks, to exchange what lies on them.
    fn join(&mut self, link: Tcp) -> Result<Joined<Self>, ExchangeError>;
}

impl Locked for Cpu {
    fn facts(&self) -> Result<DeviceFacts> {
        Ok(DeviceFacts {
            numerics: Table::from([
                ("cpu.numerics_version".to_owned(), cpu::NUMERICS_VERSION.to_string()),
                ("device.kind".to_owned(), "cpu".into()),
            ]),
            environment: Table::new(),
        })
    }

    fn pin(&mut self, _: &Table) -> Result<()> {
        Ok(())
    }

    fn join(&mut self, link: Tcp) -> Result<Joined<Cpu>, ExchangeError> {
        Ok((Box::new(Hosted(link)), None))
    }
}

/// Whether the mirror has the bits of a device with these numerics.
pub fn is_mirrored(numerics: &Table) -> bool {
    numerics.get(ARITHMETIC_KEY).is_some_and(|name| name == mirror::ARITHMETIC)
}

fn arithmetic() -> Table {
    Table::from([(ARITHMETIC_KEY.to_owned(), mirror::ARITHMETIC.into())])
}

impl Locked for Mirror {
    fn facts(&self) -> Result<DeviceFacts> {
        Ok(DeviceFacts { numerics: arithmetic(), environment: Table::new() })
    }

    fn pin(&mut self, _: &Table) -> Result<()> {
        Ok(())
    }

    fn join(&mut self, link: Tcp) -> Result<Joined<Mirror>, ExchangeError> {
        Ok((Box::new(Hosted(link)), None))
    }
}

impl Locked for Cuda {
    fn facts(&self) -> Result<DeviceFacts> {
        let mut machinery = self.numerics()?;
        if self.cublaslt_version().is_some() {
            machinery.insert("cuda.cublaslt_sha256".into(), library_sha256(Library::CublasLt)?);
        }
        let gpu = self.gpu();
        let mut environment = sensors::environment(&gpu.uuid);
        // Where the mirror has the same bits, its name says all that they depend on.
        let numerics = if self.has_mirror() {
            environment.extend(machinery);
            arithmetic()
        } else {
            machinery.insert("device.kind".into(), "cuda".into());
            machinery
        };
        environment.extend([
            ("cuda.kernels".to_owned(), origin(self.cubins())),
            ("gpu.name".to_owned(), gpu.name.clone()),
            ("gpu.uuid".to_owned(), gpu.uuid.clone()),
            ("gpu.memory_bytes".to_owned(), gpu.total_bytes.to_string()),
        ]);
        Ok(DeviceFacts { numerics, environment })
    }

    fn pin(&mut self, numerics: &Table) -> Result<()> {
        self.restore_plans(numerics)
    }

    fn join(&mut self, link: Tcp) -> Result<Joined<Cuda>, ExchangeError> {
        let (exchange, how) = nccl::join(self, link)?;
        Ok((exchange, Some(how)))
    }
}

/// Who compiled the kernels, in words. Their hashes say what came out.
fn origin(cubins: &[Cubin]) -> String {
    let embedded = cubins.iter().filter(|cubin| cubin.origin == CodeOrigin::Embedded).count();
    match embedded {
        0 => "NVRTC on this machine".into(),
        _ if embedded == cubins.len() => "compiled in".into(),
        _ => format!("{embedded} of {} files compiled in, the others by NVRTC on this machine", cubins.len()),
    }
}

/// SHA-256 of a library's file, cached between runs, because it has hundreds of megabytes.
fn library_sha256(library: Library) -> Result<String> {
    let path = libraries::require(library)?.path;
    let mut cache = remembered("libraries.json");
    let sha256 = cache.file(&path);
    cache.save();
    sha256.map(hex::encode).map_err(|e| {
        DeviceError::Unavailable(format!("cannot read `{}`, which the bits depend on: {e}", path.display()))
    })
}
