//! The experiments of the folder `experiments`, within the program: they run by their bare names, and new
//! ones are made of them, without a checkout.

use std::path::Path;

use super::reference::first_sentence;

/// An experiment within the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippedExperiment {
    /// The name of its file without `.toml`.
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! shipped {
    ($($name:literal),*) => {
        /// Every experiment and sweep of the folder, by name.
        pub static SHIPPED: &[ShippedExperiment] = &[$(ShippedExperiment {
            name: $name,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/", $name, ".toml")),
        }),*];
    };
}

shipped!(
    "ci",
    "ci_cuda",
    "example_sweep",
    "finetune_gpt2",
    "gpt2_124m",
    "gpt2_33b",
    "gpt2_420b",
    "gpt3_125m",
    "mixture",
    "modern_124m",
    "quickstart",
    "sweep_ci"
);

impl ShippedExperiment {
    /// The experiment that a path names: its bare name, and no file is there.
    pub fn named(path: &Path) -> Option<&'static ShippedExperiment> {
        SHIPPED.iter().find(|shipped| Path::new(shipped.name) == path && !path.is_file())
    }

    /// The experiment of this file name.
    pub(super) fn of_file(file: &str) -> Option<&'static ShippedExperiment> {
        SHIPPED.iter().find(|shipped| file.strip_suffix(".toml") == Some(shipped.name))
    }

    /// Whether it declares many runs.
    pub fn is_sweep(&self) -> bool {
        self.text.contains("\n[sweep")
    }

    /// What it is: the first sentence of the comment at its head.
    pub fn about(&self) -> String {
        let head = self.text.lines().map_while(|line| line.strip_prefix('#'));
        let text: Vec<&str> = head.map(str::trim).take_while(|line| !line.is_empty()).collect();
        first_sentence(&text.join(" ")).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_has_every_experiment_of_the_folder_and_knows_what_each_is() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.extension().is_some_and(|ending| ending == "toml"));
        let mut names: Vec<String> =
            files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        assert_eq!(SHIPPED.iter().map(|shipped| shipped.name).collect::<Vec<_>>(), names);
        assert!(SHIPPED.iter().all(|shipped| shipped.about().len() > 30));
        assert!(ShippedExperiment::named(Path::new("experiments/ci.toml")).is_none());
    }
}
