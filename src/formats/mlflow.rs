//! Runs in MLflow's file store (`mlruns/`): a folder a run, with its parameters, metrics, tags and artifacts
//! as files.
//!
//! `EXPERIMENT/RUN/meta.yaml` says when a run began and ended; `params/KEY` and `tags/KEY` hold a text each;
//! `metrics/NAME` has a line a point, `milliseconds value step`. All runs lie in one experiment, and a sweep
//! is a run of its own, the parent of its members. A run's folder appears whole, and replaces what was
//! exported of the run before; whatever else is in the store stays. MLflow's own client reads the result:
//! `tests/trackers/mlflow_store.py`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::error::{FormatError, Result};
use super::tracker::{PROJECT, TrackedName, TrackedRun, TrackedStatus, holds, points};
use crate::store::atomic::{self, NewFolder};

/// The folder of the experiment, by an id in MLflow's style.
const EXPERIMENT: &str = "726566000000000001";
const META: &str = "meta.yaml";

/// Writes a run into the store in `out`, which is made if it is not there.
pub fn write(out: &Path, run: &TrackedRun) -> Result<PathBuf> {
    let store = std::path::absolute(out).map_err(io(out))?;
    let (began, ended) = run.span();
    open_store(&store, milliseconds(began))?;
    let mut tags: Vec<(String, String)> = Vec::new();
    if let Some(sweep) = &run.sweep {
        let hash = sweep.hash.iter().map(|hash| ("runner.hash".to_owned(), hash.clone())).collect();
        let parent = Folder::begin(&store, &sweep.name)?;
        parent.tags(hash)?;
        parent.finish(sweep.status, sweep.span)?;
        tags.push(("mlflow.parentRunId".into(), sweep.name.id(32)));
    }
    tags.extend(run.facts.iter().map(|(key, value)| (format!("runner.{key}"), value.clone())));
    // The name of a file: of a tag with a slash no folder, and none above this one.
    let file_name = |tag: &String| tag.replace(['/', '\\'], "_");
    tags.extend(run.tags.iter().map(|tag| (format!("tag.{}", file_name(tag)), "true".into())));
    tags.extend(run.note.iter().map(|note| ("mlflow.note.content".into(), note.clone())));
    tags.extend(run.commit.iter().map(|commit| ("mlflow.source.git.commit".into(), commit.clone())));

    let folder = Folder::begin(&store, &run.name)?;
    folder.tags(tags)?;
    for (key, value) in &run.hyperparameters {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        folder.write(&format!("params/{key}"), text.as_bytes())?;
    }
    for (name, lines) in metrics(run) {
        folder.write(&format!("metrics/{name}"), lines.as_bytes())?;
    }
    for (name, bytes) in &run.files {
        folder.write(&format!("artifacts/{name}"), bytes)?;
    }
    folder.finish(run.status, (began, ended))
}

/// The lines of each metric: a point a step, and one for each number that sums the run up.
fn metrics(run: &TrackedRun) -> BTreeMap<String, String> {
    let mut lines: BTreeMap<String, String> = BTreeMap::new();
    let mut add = |name: String, time: f64, value: f64, step: u64| {
        let line = lines.entry(name).or_default();
        writeln!(line, "{} {} {step}", milliseconds(time), number(value)).expect("a string takes all");
    };
    for (row, time) in run.rows.iter().zip(run.times()) {
        points(row).for_each(|(tag, value)| add(tag.to_owned(), time, value, row.step));
    }
    let last = run.rows.last().map_or(0, |row| row.step);
    run.figures.iter().for_each(|(name, value)| add(format!("summary/{name}"), run.last_row, *value, last));
    lines
}

/// A number as Python's `float` reads it.
fn number(value: f64) -> String {
    match value.is_finite() {
        true => value.to_string(),
        false if value.is_nan() => "nan".into(),
        false => if value > 0.0 { "inf" } else { "-inf" }.into(),
    }
}

fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1e3) as u64
}

/// Finds the store in a folder, or makes it, with MLflow's own first experiment and ours.
fn open_store(store: &Path, now: u64) -> Result<()> {
    let begun = holds(store, "MLflow's file store", |name| [EXPERIMENT, "0", ".trash"].contains(&name))?;
    for (id, name) in [("0", "Default"), (EXPERIMENT, PROJECT)] {
        let folder = store.join(id);
        // In a store of MLflow's own its first experiment may have been deleted.
        if folder.join(META).is_file() || (begun && id == "0" && !folder.is_dir()) {
            continue;
        }
        fs::create_dir_all(&folder).map_err(io(&folder))?;
        let text = format!(
            "artifact_location: {}\ncreation_time: {now}\nexperiment_id: '{id}'\nlast_update_time: {now}\n\
             lifecycle_stage: active\nname: {name}\n",
            quoted(&uri(&folder))
        );
        let meta = folder.join(META);
        let mut file = atomic::one_of_many(&meta).map_err(io(&meta))?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(io(&meta))?;
        match file.persist_noclobber(&meta) {
            // Another export has made it meanwhile.
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {}
            made => drop(made.map_err(|error| io(&meta)(error.error))?),
        }
    }
    Ok(())
}

/// The folder of a run, being written.
struct Folder<'a> {
    name: &'a TrackedName,
    target: PathBuf,
    new: NewFolder,
}

impl Folder<'_> {
    fn begin<'a>(store: &Path, name: &'a TrackedName) -> Result<Folder<'a>> {
        let (experiment, id) = (store.join(EXPERIMENT), name.id(32));
        // What a kill left of an export of this run.
        atomic::clean(&experiment, |name| name == id)?;
        let target = experiment.join(id);
        let new = NewFolder::create(&target)?;
        for part in ["params", "metrics", "tags", "artifacts"] {
            fs::create_dir(new.path().join(part)).map_err(io(&target))?;
        }
        Ok(Folder { name, target, new })
    }

    /// Writes a file; a slash in its name makes folders. It is not synchronised: what a power cut loses is
    /// exported again.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.new.path().join(name);
        let folder = path.parent().unwrap_or(self.new.path());
        fs::create_dir_all(folder).and_then(|()| fs::write(&path, bytes)).map_err(io(&self.target.join(name)))
    }

    /// Writes the tags that every run has, and these.
    fn tags(&self, tags: Vec<(String, String)>) -> Result<()> {
        let own = [
            ("mlflow.runName", &*self.name.name),
            ("mlflow.source.type", "LOCAL"),
            ("mlflow.source.name", "runner"),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        own.into_iter()
            .chain(tags)
            .try_for_each(|(key, value)| self.write(&format!("tags/{key}"), value.as_bytes()))
    }

    /// Writes what makes the folder a run, and gives it its name.
    fn finish(self, status: TrackedStatus, (began, ended): (f64, f64)) -> Result<PathBuf> {
        let (status, ended) = match status {
            TrackedStatus::Running => (1, "null".to_owned()),
            TrackedStatus::Finished => (3, milliseconds(ended).to_string()),
            TrackedStatus::Failed => (4, milliseconds(ended).to_string()),
            TrackedStatus::Stopped => (5, milliseconds(ended).to_string()),
        };
        let text = format!(
            "artifact_uri: {}\ndeleted_time: null\nend_time: {ended}\nentry_point_name: ''\n\
             experiment_id: '{EXPERIMENT}'\nlifecycle_stage: active\nrun_id: '{}'\nrun_name: {}\n\
             source_name: ''\nsource_type: 4\nsource_version: ''\nstart_time: {}\nstatus: {status}\n\
             tags: []\nuser_id: ''\n",
            quoted(&uri(&self.target.join("artifacts"))),
            self.name.id(32),
            quoted(&self.name.name),
            milliseconds(began),
        );
        self.write(META, text.as_bytes())?;
        self.new.commit()?;
        Ok(self.target)
    }
}

/// A path as a URI of a file.
fn uri(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let escaped = path.as_os_str().as_encoded_bytes().iter().map(|&byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    format!("file://{}", escaped.collect::<String>())
}

/// A text in YAML: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string becomes JSON")
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> FormatError {
    let path = path.to_owned();
    move |source| FormatError::Write { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::super::tracker::tests::run;
    use super::*;

    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap().flatten() {
                match entry.path().is_dir() {
                    true => folders.push(entry.path()),
                    false => found.push(entry.path().strip_prefix(folder).unwrap().display().to_string()),
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_run_is_written_once_with_its_points_and_its_parent() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("my runs");
        let written = write(&out, &run()).unwrap();
        let read = |name: &str| fs::read_to_string(written.join(name)).unwrap();
        assert_eq!(read("metrics/train/loss"), "999250 3 0\n999750 nan 1\n1000250 2.5 2\n");
        assert_eq!(read("metrics/eval/val_loss"), "1000250 2.75 3\n");
        assert_eq!(read("metrics/summary/mean_loss"), "1000250 2.5 3\n");
        assert_eq!((read("params/seed"), read("params/schedule.kind")), ("7".into(), "wsd".into()));
        assert_eq!((read("tags/runner.root"), read("artifacts/lock.toml")), ("1f7a".into(), "x".into()));
        assert_eq!(read("tags/mlflow.parentRunId"), TrackedName::new("lr", b"declaration").id(32));
        assert!(read(META).contains("my%20runs/") && read(META).contains("status: 3\n"), "{}", read(META));
        assert_eq!(read("tags/tag..._.._.._up"), "true", "no folder above is reached by a tag");
        let before = files(&out);
        fs::write(written.join("params/old"), "of a key that is gone").unwrap();
        let id = run().name.id(32);
        fs::create_dir(out.join(EXPERIMENT).join(format!(".tmp.{id}"))).unwrap();
        fs::create_dir(out.join(EXPERIMENT).join(format!(".old.{id}"))).unwrap();
        assert_eq!(write(&out, &run()).unwrap(), written);
        assert_eq!(files(&out), before, "exported again, it is replaced");
        assert_eq!(
            fs::read_dir(out.join(EXPERIMENT)).unwrap().count(),
            3,
            "two runs and the experiment's file"
        );
    }

    #[test]
    fn a_store_may_be_begun_by_several_at_once() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..20 {
            let store = root.path().join(number.to_string());
            std::thread::scope(|scope| {
                let all = [(); 4].map(|()| scope.spawn(|| open_store(&store, 7)));
                all.into_iter().for_each(|one| one.join().unwrap().unwrap());
            });
            let mut made = files(&store);
            made.sort();
            assert_eq!(made, [format!("0/{META}"), format!("{EXPERIMENT}/{META}")]);
        }
    }

    #[test]
    fn a_folder_that_is_no_store_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.tex"), "mine").unwrap();
        let refused = write(root.path(), &run()).unwrap_err().to_string();
        assert!(refused.contains("MLflow's file store") && refused.contains("hint: "), "{refused}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        let file = write(&root.path().join("thesis.tex"), &run()).unwrap_err().to_string();
        assert!(file.contains("thesis.tex` is not MLflow's file store"), "{file}");
    }
}
