//! Finding CUDA's libraries at run time.
//!
//! The binary links none of them, so it starts on a machine without a GPU and can say what is
//! missing. `cudarc` looks a library up by its bare name, panics when it is absent, and knows
//! nothing of Python's wheels, where most machines keep CUDA today. So this module comes first: it
//! asks the dynamic loader, then searches the usual folders, and loads what it finds by its full
//! path and globally. `cudarc`'s own lookup then finds the library already in memory under its
//! `SONAME`.
//!
//! It deliberately has no setting of its own: `LD_LIBRARY_PATH`, `CUDA_HOME` and `CUDA_PATH` are
//! what people already use.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::ops::{DeviceError, Result};

/// A library that something here needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Library {
    /// `libcuda`, which the driver installs.
    Driver,
    /// The run-time compiler of the kernels.
    Nvrtc,
    /// Matrix multiplication.
    CublasLt,
    /// Communication between GPUs; optional.
    Nccl,
}

impl Library {
    pub const ALL: [Library; 4] = [Library::Driver, Library::Nvrtc, Library::CublasLt, Library::Nccl];

    /// The stem of its file name: `lib{stem}.so`.
    pub fn stem(self) -> &'static str {
        match self {
            Library::Driver => "cuda",
            Library::Nvrtc => "nvrtc",
            Library::CublasLt => "cublasLt",
            Library::Nccl => "nccl",
        }
    }

    /// What a machine can do with it.
    pub fn enables(self) -> &'static str {
        match self {
            Library::Driver => "any use of the GPU",
            Library::Nvrtc => "compiling the kernels",
            Library::CublasLt => "matrix multiplication",
            Library::Nccl => "training on several GPUs",
        }
    }

    /// How to get it, for people.
    fn hint(self) -> &'static str {
        match self {
            Library::Driver => {
                "install the NVIDIA driver; without a GPU, `device.kind=mirror` gives its bits on a CPU, \
                 slowly, and `device.kind=cpu` with `precision.compute=fp32` trains there"
            }
            Library::Nvrtc => {
                "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc`, or set CUDA_HOME"
            }
            Library::CublasLt => "install the CUDA toolkit, or `pip install nvidia-cublas`, or set CUDA_HOME",
            Library::Nccl => "install NCCL, or `pip install nvidia-nccl-cu13`",
        }
    }

    /// File names in the order of preference, which must be `cudarc`'s where it loads the library.
    fn file_names(self) -> Vec<String> {
        match self {
            Library::Nccl => vec!["libnccl.so".into(), "libnccl.so.2".into()],
            other => cudarc::get_lib_name_candidates(other.stem()),
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lib{}", self.stem())
    }
}

/// A library in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedLibrary {
    pub library: Library,
    /// The file, links resolved.
    pub path: PathBuf,
}

/// A library that could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub library: Library,
    /// Folders that were searched after the loader's own path.
    pub searched: Vec<PathBuf>,
    /// Files that were there and would not load, with the loader's reason.
    pub refused: Vec<(PathBuf, String)>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` was not found ({})", self.library, self.library.enables())?;
        write!(f, "\n  searched: the loader's path")?;
        for folder in &self.searched {
            write!(f, ", {}", folder.display())?;
        }
        for (file, reason) in &self.refused {
            write!(f, "\n  {} did not load: {reason}", file.display())?;
        }
        write!(f, "\n  hint: {}", self.library.hint())
    }
}

/// Loads `library`, without which CUDA cannot be used.
pub fn require(library: Library) -> Result<LoadedLibrary> {
    load(library).map_err(|missing| DeviceError::Unavailable(format!("CUDA cannot be used: {missing}")))
}

/// Loads `library` once in the life of the process, and says from where.
pub fn load(library: Library) -> Result<LoadedLibrary, Missing> {
    static LOADED: Mutex<BTreeMap<Library, LoadedLibrary>> = Mutex::new(BTreeMap::new());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = loaded.get(&library) {
        return Ok(found.clone());
    }
    let found =
        load_first(library, &library.file_names(), &folders(library, &|name| std::env::var_os(name)))?;
    loaded.insert(library, found.clone());
    Ok(found)
}

/// The first of the files with these names that loads: where the loader looks, then in `folders`.
fn load_first(library: Library, names: &[String], folders: &[PathBuf]) -> Result<LoadedLibrary, Missing> {
    for name in names {
        if open(Path::new(name)).is_ok() {
            let path = mapped_file(library).unwrap_or_else(|| PathBuf::from(name));
            return Ok(LoadedLibrary { library, path });
        }
    }
    let mut refused = Vec::new();
    for folder in folders {
        for name in names {
            let file = folder.join(name);
            if !file.is_file() {
                continue;
            }
            match open(&file) {
                Ok(()) => return Ok(LoadedLibrary { library, path: file.canonicalize().unwrap_or(file) }),
                Err(reason) => refused.push((file, reason)),
            }
        }
    }
    Err(Missing { library, searched: folders.to_vec(), refused })
}

#[cfg(unix)]
fn open(file: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: loading runs the library's initialisers; these are NVIDIA's own libraries under their
    // own names, which do nothing but register themselves.
    match unsafe { Handle::open(Some(file), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(handle) => {
            // Never unloaded: `cudarc` keeps pointers into it.
            std::mem::forget(handle);
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(unix))]
fn open(_file: &Path) -> Result<(), String> {
    Err("CUDA libraries are only loaded on Linux".into())
}

/// The file behind a loaded library, from the process's memory map.
fn mapped_file(library: Library) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let prefix = format!("lib{}.so", library.stem());
    maps.lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .map(Path::to_path_buf)
}

/// Folders that exist and may hold `library`, likeliest first.
fn folders(library: Library, env: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut add = |pattern: String| {
        // Descending, so that `cuda-13.0` comes before `cuda-12.4`.
        let mut matches: Vec<PathBuf> =
            glob::glob(&pattern).map(|paths| paths.flatten().collect()).unwrap_or_default();
        matches.sort_unstable_by(|a, b| b.cmp(a));
        for folder in matches {
            if folder.is_dir() && !found.contains(&folder) {
                found.push(folder);
            }
        }
    };
    if library == Library::Driver {
        for folder in [
            "/usr/local/nvidia/lib64",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/usr/lib64",
            "/usr/lib/wsl/lib",
        ] {
            add(folder.into());
        }
        return found;
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(root) = env_folder(env, variable) {
            add(format!("{root}/lib64"));
            add(format!("{root}/lib"));
            add(format!("{root}/targets/*/lib"));
        }
    }
    add("/usr/local/cuda/lib64".into());
    add("/usr/local/cuda*/lib64".into());
    add("/opt/cuda*/lib64".into());
    for root in python_roots(env) {
        for packages in ["site-packages", "dist-packages"] {
            // From CUDA 13 on one folder for all; before, one for each package.
            add(format!("{root}/lib/python3*/{packages}/nvidia/cu[0-9]*/lib"));
            add(format!("{root}/lib/python3*/{packages}/nvidia/*/lib"));
        }
    }
    if let Some(conda) = env_folder(env, "CONDA_PREFIX") {
        add(format!("{conda}/lib"));
    }
    add("/usr/lib/x86_64-linux-gnu".into());
    found
}

/// Prefixes under which a Python keeps `lib/python3*/site-packages`, without asking any Python.
fn python_roots(env: &dyn Fn(&str) -> Option<OsString>) -> Vec<String> {
    let mut roots: Vec<String> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| env_folder(env, name)).collect();
    roots.push(".venv".into());
    // A Python on the path: `<root>/bin/python3`.
    for folder in env("PATH").iter().flat_map(std::env::split_paths) {
        if folder.join("python3").exists()
            && let Some(root) = folder.parent().and_then(Path::to_str)
        {
            roots.push(glob::Pattern::escape(root));
        }
    }
    if let Some(home) = env_folder(env, "HOME") {
        roots.push(format!("{home}/.local"));
    }
    roots.extend(["/usr", "/usr/local", "/opt/*/.venv", "/opt/*"].map(String::from));
    roots
}

/// An environment variable that names a folder, its special characters escaped for a glob.
fn env_folder(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<String> {
    let value = env(name)?.into_string().ok()?;
    (!value.is_empty()).then(|| glob::Pattern::escape(value.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_of_the_active_environment_are_searched_newest_layout_first() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let packages = root.path().join("lib/python3.12/site-packages/nvidia");
        for folder in ["cu13/lib", "cublas/lib"] {
            std::fs::create_dir_all(packages.join(folder)).expect("folders");
        }
        let env = |name: &str| (name == "VIRTUAL_ENV").then(|| root.path().as_os_str().to_owned());
        let found: Vec<PathBuf> =
            folders(Library::CublasLt, &env).into_iter().filter(|f| f.starts_with(root.path())).collect();
        assert_eq!(found, [packages.join("cu13/lib"), packages.join("cublas/lib")]);
    }

    #[test]
    fn cuda_home_comes_before_wheels() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let home = root.path().join("cuda/lib64");
        let wheel = root.path().join("lib/python3.12/site-packages/nvidia/cu13/lib");
        for folder in [&home, &wheel] {
            std::fs::create_dir_all(folder).expect("folders");
        }
        let env = |name: &str| match name {
            "CUDA_HOME" => Some(root.path().join("cuda").into_os_string()),
            "VIRTUAL_ENV" => Some(root.path().as_os_str().to_owned()),
            _ => None,
        };
        assert_eq!(folders(Library::Nvrtc, &env)[0], home);
        assert!(folders(Library::Nvrtc, &env).contains(&wheel));
    }

    #[test]
    fn a_python_on_the_path_leads_to_its_packages() {
        let root = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir_all(root.path().join("bin")).expect("folders");
        std::fs::write(root.path().join("bin/python3"), "").expect("a file");
        let wheel = root.path().join("lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib");
        std::fs::create_dir_all(&wheel).expect("folders");
        let env = |name: &str| (name == "PATH").then(|| root.path().join("bin").into_os_string());
        assert!(folders(Library::Nvrtc, &env).contains(&wheel));
    }

    #[test]
    fn a_missing_library_names_itself_the_folders_and_a_way_out() {
        let root = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(root.path().join("libnccl-of-a-test.so.2"), "not a library").expect("a file");
        // Not the name of NCCL, which the loader may find by itself.
        let names = vec!["libnccl-of-a-test.so.2".to_owned()];
        let missing =
            load_first(Library::Nccl, &names, &[root.path().to_path_buf()]).expect_err("no library");
        let text = missing.to_string();
        assert!(text.contains("libnccl") && text.contains(&root.path().display().to_string()), "{text}");
        assert!(text.contains("did not load") && text.contains("hint:"), "{text}");
    }
}
