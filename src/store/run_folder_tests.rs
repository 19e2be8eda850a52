use super::super::checkpoint::{list, save, tests::*};
use super::*;

fn start(root: &Path) -> RunFolder {
    let run = RunFolder::create(root, "quickstart", false).unwrap();
    fs::write(run.paths.experiment(), "# q.toml, resolved: keys\nname = 'quickstart'").unwrap();
    save(&run.paths.checkpoints(), &state(3), &facts(3)).unwrap();
    run
}

#[test]
fn a_run_is_called_as_its_folder_is_also_from_within() {
    let here = std::env::current_dir().unwrap();
    let own = here.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(RunPaths::new(Path::new(".")).name(), own);
    assert_eq!(RunPaths::new(Path::new("runs/a/")).name(), "a");
}

#[test]
fn a_second_process_is_kept_out_and_the_message_names_the_first() {
    let root = tempfile::tempdir().unwrap();
    let run = start(root.path());
    let folder = run.paths.folder().to_owned();
    for second in [
        RunFolder::open(&folder),
        RunFolder::create(root.path(), "quickstart", false),
        RunFolder::create(root.path(), "quickstart", true),
    ] {
        match second {
            Err(e @ StoreError::Locked { .. }) => {
                assert!(e.to_string().contains(&format!("process {}", std::process::id())), "{e}")
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(list(&run.paths.checkpoints()).unwrap().len(), 1, "the run is untouched");
    drop(run);
    RunFolder::open(&folder).unwrap();
}

#[test]
fn starting_over_is_refused_unless_asked_for() {
    let root = tempfile::tempdir().unwrap();
    drop(start(root.path()));
    assert!(matches!(RunFolder::create(root.path(), "quickstart", false), Err(StoreError::RunExists { .. })));
}

/// As the file of an experiment in a folder of its own, which somebody names as a run's.
#[test]
fn what_a_person_wrote_under_the_name_of_our_files_makes_no_run_and_is_not_deleted() {
    let root = tempfile::tempdir().unwrap();
    let mine = root.path().join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("experiment.toml"), "# my notes\nname = 'mine'\n").unwrap();
    let refusals = [
        RunFolder::create(root.path(), "mine", true).map(drop),
        RunFolder::create_again(root.path(), "mine").map(drop),
        RunFolder::open(&mine).map(drop),
        RunFolder::check_new(root.path(), "mine"),
        RunFolder::check_overwrite(root.path(), "mine"),
        RunFolder::remove(&mine, true),
    ];
    for refused in refusals {
        assert!(matches!(refused, Err(StoreError::NotARun { .. })), "{refused:?}");
    }
    // In a run it is somebody's file in place of ours.
    let run = start(root.path());
    fs::write(run.paths.experiment(), "name = 'mine'\n").unwrap();
    fs::write(run.paths.lock_file(), "").unwrap();
    drop(run);
    let refused = RunFolder::check_overwrite(root.path(), "quickstart").unwrap_err().to_string();
    assert!(refused.contains("`experiment.toml`"), "{refused}");
}

#[test]
fn a_run_that_never_began_is_not_in_the_way() {
    let root = tempfile::tempdir().unwrap();
    drop(RunFolder::create(root.path(), "quickstart", false).unwrap());
    drop(RunFolder::create(root.path(), "quickstart", false).unwrap());
    assert!(matches!(RunFolder::open(&root.path().join("quickstart")), Err(StoreError::NoSuchRun { .. })));
}

#[test]
fn what_a_kill_left_of_a_run_that_had_not_begun_is_cleared_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let run = RunFolder::create(root.path(), "quickstart", false).unwrap();
    fs::write(run.paths.lock_file(), "half a lo").unwrap();
    let clear = || RunFolder::clear_unbegun(root.path(), "quickstart");
    assert!(matches!(clear(), Err(StoreError::Locked { .. })));
    let paths = run.paths.clone();
    drop(run);
    assert!(matches!(RunFolder::check_new(root.path(), "quickstart"), Err(StoreError::RunExists { .. })));
    clear().unwrap();
    assert!(!paths.lock_file().exists());
    RunFolder::check_new(root.path(), "quickstart").unwrap();
    fs::write(paths.lock_file(), "").unwrap();
    fs::write(paths.ledger(), "").unwrap();
    assert!(matches!(clear(), Err(StoreError::NoExperiment { .. })));
    assert!(paths.lack_experiment() && paths.have_begun(), "a ledger is of a run that has begun");
    fs::remove_file(paths.ledger()).unwrap();
    assert!(!paths.lack_experiment() && !paths.have_begun(), "a lock alone is not");
    fs::write(paths.experiment(), "# q.toml, resolved: keys").unwrap();
    clear().unwrap();
    assert!(paths.lock_file().exists(), "of a run that has begun nothing is removed");
    fs::create_dir(root.path().join("empty")).unwrap();
    RunFolder::clear_unbegun(root.path(), "empty").unwrap();
    assert!(fs::read_dir(root.path().join("empty")).unwrap().next().is_none(), "no lock file is left");
}

/// In llm.c a used folder keeps its old `DONE` markers, and a later resume takes the old run.
#[test]
fn starting_over_leaves_no_old_checkpoint_behind() {
    let root = tempfile::tempdir().unwrap();
    drop(start(root.path()));
    // A deletion that a kill interrupted, too.
    fs::create_dir_all(root.path().join(".del.quickstart/checkpoints")).unwrap();
    let run = RunFolder::create(root.path(), "quickstart", true).unwrap();
    assert!(list(&run.paths.checkpoints()).unwrap().is_empty());
    assert!(!run.paths.experiment().exists());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing of the old run stays beside");
    let second = RunFolder::create(root.path(), "quickstart", true);
    assert!(matches!(second, Err(StoreError::Locked { .. })), "the new folder is locked");
}

#[test]
fn opening_cleans_what_a_kill_left() {
    let root = tempfile::tempdir().unwrap();
    let run = start(root.path());
    let half = run.paths.checkpoints().join(".tmp.step_00000004");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("state.safetensors"), "half").unwrap();
    fs::write(run.paths.folder().join(".tmp.metrics.parquet"), "half").unwrap();
    let folder = run.paths.folder().to_owned();
    drop(run);
    let run = RunFolder::open(&folder).unwrap();
    assert!(!half.exists() && !folder.join(".tmp.metrics.parquet").exists());
    assert_eq!(list(&run.paths.checkpoints()).unwrap().len(), 1);
}

#[test]
fn a_folder_without_a_run_is_not_opened() {
    let root = tempfile::tempdir().unwrap();
    assert!(matches!(RunFolder::open(&root.path().join("none")), Err(StoreError::NoSuchRun { .. })));
    fs::create_dir(root.path().join("empty")).unwrap();
    assert!(matches!(RunFolder::open(&root.path().join("empty")), Err(StoreError::NoSuchRun { .. })));
    assert!(
        fs::read_dir(root.path().join("empty")).unwrap().next().is_none(),
        "looking leaves no lock behind"
    );
}

#[test]
fn names_that_would_leave_the_root_are_refused() {
    let root = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", ".del.x", "a/b", "../x", " a", "a ", "a:b", "a\nb", &"x".repeat(201)] {
        assert!(
            matches!(RunFolder::create(root.path(), name, true), Err(StoreError::BadName { .. })),
            "{name}"
        );
    }
    for name in ["gpt2_124m-v1.5", "a b", "été"] {
        RunFolder::create(root.path(), name, false).unwrap();
    }
}

#[test]
fn the_newest_run_is_the_one_worked_on_last() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(newest_run(root.path()).unwrap(), None);
    assert_eq!(newest_run(&root.path().join("none")).unwrap(), None);
    let at = |name: &str, file: &str, seconds: u64| {
        let path = root.path().join(name).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        File::create(path).unwrap().set_modified(time).unwrap();
    };
    at("a", "experiment.toml", 900);
    at("a", "ledger.jsonl", 100);
    at("b", "ledger.jsonl", 200);
    at("c", "experiment.toml", 150);
    at(".del.d", "ledger.jsonl", 999);
    at("not_a_run", "README.md", 999);
    assert_eq!(newest_run(root.path()).unwrap(), Some(root.path().join("b")));
}
