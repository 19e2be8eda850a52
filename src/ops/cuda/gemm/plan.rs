//! Which algorithm a matrix multiplication uses, in a form that files can hold.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::compile::cache_folder;
use super::super::product::{GemmKey, Tiling};

/// An algorithm's settings as cuBLASLt names them: for people, and to check what the bytes say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub algorithm: i32,
    pub tile: u32,
    pub stages: u32,
    pub split_k: i32,
    pub reduction: u32,
    pub swizzle: u32,
    pub custom: u32,
    pub inner_shape: u16,
    pub cluster_shape: u16,
}

/// An algorithm of cuBLASLt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CublasLt {
    /// cuBLASLt's 64 bytes, in hexadecimal.
    pub algo: String,
    #[serde(flatten)]
    pub attributes: Attributes,
    pub workspace_bytes: u64,
}

impl CublasLt {
    /// The 64 bytes as cuBLASLt's structure holds them; `None` when the text is damaged.
    pub fn words(&self) -> Option<[u64; 8]> {
        let bytes = hex::decode(&self.algo).ok()?;
        let mut words = [0; 8];
        if bytes.len() != 64 {
            return None;
        }
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }

    pub fn encode(words: [u64; 8]) -> String {
        hex::encode(words.map(u64::to_le_bytes).concat())
    }
}

/// Which implementation multiplies, and with which settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Algorithm {
    /// Our own kernels, with everything fused.
    Hopper {
        hopper: Tiling,
    },
    CublasLt(CublasLt),
}

/// A pinned algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GemmPlan {
    #[serde(flatten)]
    pub key: GemmKey,
    #[serde(flatten)]
    pub algorithm: Algorithm,
}

/// The plans that this user's machine has tuned for one GPU model and one version of cuBLASLt, 0 without it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PlanFile {
    gpu: String,
    cublaslt: u64,
    workspace_bytes: u64,
    #[serde(default)]
    plan: Vec<GemmPlan>,
}

/// Plans that come with the program, for the experiments under `experiments/`, tuned on one machine: a
/// newcomer with such a GPU and such a library need not tune.
struct Shipped {
    /// What is fastest depends on these two, whatever the GPU is called.
    architecture: &'static str,
    sm_count: u32,
    text: &'static str,
}

const SHIPPED: &[Shipped] = &[Shipped {
    architecture: "sm_90a",
    sm_count: 132,
    text: include_str!("../../../../experiments/locks/h100_cublaslt_130100.plans.toml"),
}];

/// The shipped plans for this kind of GPU and this version of cuBLASLt; without the library any version's, of
/// which those for our own products can be used.
pub fn shipped(
    architecture: &str,
    sm_count: u32,
    cublaslt: Option<u64>,
    workspace_bytes: u64,
) -> Vec<GemmPlan> {
    let fits = |file: &PlanFile| {
        cublaslt.is_none_or(|version| file.cublaslt == version) && file.workspace_bytes == workspace_bytes
    };
    SHIPPED
        .iter()
        .filter(|shipped| shipped.architecture == architecture && shipped.sm_count == sm_count)
        .filter_map(|shipped| toml::from_str(shipped.text).ok())
        .filter(fits)
        .flat_map(|file| file.plan)
        .collect()
}

/// Number of the form of a user's plan file. A build that does not know a word in it would take the file for
/// damaged, and overwrite it.
const FORMAT: u32 = 5;

/// The file of a user's plans.
pub struct UserPlans {
    file: Option<PathBuf>,
    gpu: String,
    cublaslt: u64,
    workspace_bytes: u64,
}

impl UserPlans {
    pub fn new(folder: Option<PathBuf>, gpu: &str, cublaslt: u64, workspace_bytes: u64) -> UserPlans {
        let name: String = gpu
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let file = folder.map(|folder| folder.join(format!("{name}-{cublaslt}-v{FORMAT}.toml")));
        UserPlans { file, gpu: gpu.to_owned(), cublaslt, workspace_bytes }
    }

    /// In the user's cache folder.
    pub fn of_user(gpu: &str, cublaslt: Option<u64>, workspace_bytes: u64) -> UserPlans {
        UserPlans::new(cache_folder("plans"), gpu, cublaslt.unwrap_or(0), workspace_bytes)
    }

    /// The plans in the file; none when it is absent, damaged, or was made under other conditions.
    pub fn read(&self) -> Vec<GemmPlan> {
        let text = self.file.as_deref().and_then(|file| std::fs::read_to_string(file).ok());
        let file = text.and_then(|text| toml::from_str::<PlanFile>(&text).ok());
        file.filter(|f| {
            f.gpu == self.gpu && f.cublaslt == self.cublaslt && f.workspace_bytes == self.workspace_bytes
        })
        .map(|f| f.plan)
        .unwrap_or_default()
    }

    /// Adds `plans` to the file. A plan that is already there stays: a lock may hold it.
    pub fn add(&self, plans: &[GemmPlan]) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut all = self.read();
        for plan in plans {
            if all.iter().all(|known| known.key != plan.key) {
                all.push(plan.clone());
            }
        }
        all.sort_by_key(|plan| plan.key);
        let contents = PlanFile {
            gpu: self.gpu.clone(),
            cublaslt: self.cublaslt,
            workspace_bytes: self.workspace_bytes,
            plan: all,
        };
        let text = toml::to_string(&contents).map_err(std::io::Error::other)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(text.as_bytes())?;
        temporary.persist(file)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::product::{Epilogue, Product, Types};
    use super::*;

    fn plan(c_out: u64, fill: u64) -> GemmPlan {
        let key = GemmKey {
            product: Product::Forward,
            rows: 1024,
            c_in: 768,
            c_out,
            types: Types::Bf16,
            epilogue: Epilogue::Bias,
        };
        let attributes =
            Attributes { algorithm: 66, tile: 20, split_k: 1, cluster_shape: 3, ..Attributes::default() };
        let algorithm = Algorithm::CublasLt(CublasLt {
            algo: CublasLt::encode([fill; 8]),
            attributes,
            workspace_bytes: 1 << 40,
        });
        GemmPlan { key, algorithm }
    }

    fn own(c_out: u64) -> GemmPlan {
        let hopper = Tiling { width: 192, cluster: 2, group: 8 };
        GemmPlan { algorithm: Algorithm::Hopper { hopper }, ..plan(c_out, 0) }
    }

    #[test]
    fn the_64_bytes_survive_the_text() {
        let words = [0, 1, u64::MAX, 0x0123_4567_89ab_cdef, 4, 5, 6, 7];
        let plan =
            CublasLt { algo: CublasLt::encode(words), attributes: Attributes::default(), workspace_bytes: 0 };
        assert_eq!(plan.words(), Some(words));
        assert_eq!(CublasLt { algo: plan.algo[2..].to_owned(), ..plan }.words(), None);
    }

    #[test]
    fn both_kinds_of_plans_survive_json_and_say_what_they_are() {
        for plan in [plan(768, 7), own(3072)] {
            let json = serde_json::to_string(&plan).expect("plain data");
            assert_eq!(serde_json::from_str::<GemmPlan>(&json).expect("a plan"), plan, "{json}");
        }
        let json = serde_json::to_string(&own(8)).expect("plain data");
        assert!(json.ends_with(r#""hopper":{"width":192,"cluster":2,"group":8}}"#), "{json}");
        assert!(
            serde_json::from_str::<GemmPlan>(&json.replace("width", "breadth")).is_err(),
            "half a plan is none"
        );
    }

    #[test]
    fn plans_come_back_from_the_file_and_the_first_one_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let plans =
            |version| UserPlans::new(Some(folder.path().join("plans")), "NVIDIA H100 80GB HBM3", version, 64);
        plans(130_100).add(&[plan(768, 1), plan(3072, 2)]).expect("written");
        plans(130_100).add(&[plan(768, 9), own(2304)]).expect("written");
        assert_eq!(plans(130_100).read(), [plan(768, 1), own(2304), plan(3072, 2)]);
        assert_eq!(plans(130_200).read(), [], "another version has its own file");
    }

    #[test]
    fn shipped_plans_are_whole_and_for_their_own_kind_of_gpu() {
        for shipped in SHIPPED {
            let file: PlanFile = toml::from_str(shipped.text).expect("a plan file");
            let whole = |plan: &GemmPlan| match &plan.algorithm {
                Algorithm::Hopper { hopper } => hopper.group > 0,
                Algorithm::CublasLt(plan) => plan.words().is_some(),
            };
            assert!(!file.plan.is_empty() && file.plan.iter().all(whole));
            let found =
                |sms| super::shipped(shipped.architecture, sms, Some(file.cublaslt), file.workspace_bytes);
            assert_eq!(found(shipped.sm_count), file.plan);
            assert_eq!(found(shipped.sm_count - 1), []);
            let of_another = |version| {
                super::shipped(shipped.architecture, shipped.sm_count, version, file.workspace_bytes)
            };
            assert_eq!(of_another(Some(file.cublaslt + 1)), []);
            assert_eq!(of_another(None), file.plan, "without the library its version is no matter");
        }
    }

    #[test]
    fn a_damaged_plan_file_is_no_plan_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let plans = UserPlans::new(Some(folder.path().to_path_buf()), "gpu", 1, 64);
        std::fs::write(folder.path().join(format!("gpu-1-v{FORMAT}.toml")), "plan = 7").expect("written");
        assert_eq!(plans.read(), []);
    }
}
