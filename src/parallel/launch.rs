//! The place of a rank as its launcher gives it: torchrun, mpirun, mpiexec and srun set variables, `runner`
//! itself those of torchrun.
//!
//! Nothing is guessed: without a launcher's variables there is no place, and with half of them an error.
//! Where rank 0 can be found is `MASTER_ADDR:MASTER_PORT` if both are set, else a file in a folder that all
//! ranks share. What names the run includes what the launcher changes from attempt to attempt, so that a
//! restarted job does not meet what is left of the one before.

use std::num::NonZeroU16;
use std::path::Path;

use super::handshake::{KeySource, RANK_KEY};
use super::{Meeting, RankPlace, rendezvous};

/// The variable that names the run, over what the launcher says.
pub const RUN_ID: &str = "RUNNER_RUN_ID";

/// A launcher's variables that make no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    #[error(
        "{launcher} set {set}, but not {missing}\n  hint: start all ranks by the launcher, or unset its \
         variables"
    )]
    Missing { launcher: &'static str, set: &'static str, missing: &'static str },
    #[error("{launcher}: {name} is `{value}`, expected {expected}")]
    Bad { launcher: &'static str, name: &'static str, value: String, expected: String },
}

/// The variables of one launcher.
struct Launcher {
    name: &'static str,
    /// The variable that only this launcher sets.
    marker: &'static str,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
    /// What distinguishes one run and attempt from the next; those that are set are joined.
    run: &'static [&'static str],
}

/// The first launcher whose `marker` is set counts: one that starts its ranks through srun, or is itself
/// started so, comes before srun. Slurm is recognised by its steps: inside a batch script, before any srun,
/// only the variables of the job are set.
const LAUNCHERS: [Launcher; 4] = [
    Launcher {
        name: "torchrun",
        marker: "WORLD_SIZE",
        rank: "RANK",
        size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_size: "LOCAL_WORLD_SIZE",
        run: &["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"],
    },
    Launcher {
        name: "mpirun",
        marker: "OMPI_COMM_WORLD_SIZE",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
        run: &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"],
    },
    // Hydra, of MPICH and Intel MPI. `srun --mpi=pmi2` sets PMI_SIZE as well, without the rank on the
    // machine.
    Launcher {
        name: "mpiexec",
        marker: "MPI_LOCALNRANKS",
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_size: "MPI_LOCALNRANKS",
        // MPICH gives the name of a run only to MPI programs, so the batch system's job and the proxy are
        // used.
        run: &["I_MPI_HYDRA_UUID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"],
    },
    Launcher {
        name: "srun",
        marker: "SLURM_STEP_NUM_TASKS",
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_size: SLURM_LIST,
        run: &["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"],
    },
];

/// One number for each node, this one's at `SLURM_NODEID`.
const SLURM_LIST: &str = "SLURM_STEP_TASKS_PER_NODE";

/// The place that a launcher gave this process, if one did. `shared` is the folder in which ranks meet.
pub fn place(var: &dyn Fn(&str) -> Option<String>, shared: &Path) -> Result<Option<RankPlace>, LaunchError> {
    let Some(launcher) = LAUNCHERS.iter().find(|launcher| var(launcher.marker).is_some()) else {
        return Ok(None);
    };
    let number = |name: &'static str| -> Result<Option<usize>, LaunchError> {
        let Some(value) = var(name) else { return Ok(None) };
        let bad = || LaunchError::Bad {
            launcher: launcher.name,
            name,
            value: value.clone(),
            expected: "a number".into(),
        };
        let number = if name == SLURM_LIST {
            of_node(&value, var("SLURM_NODEID").and_then(|node| node.parse().ok()).unwrap_or(0))
        } else {
            value.parse().ok()
        };
        number.map(Some).ok_or_else(bad)
    };
    let must = |name: &'static str| {
        let missing = LaunchError::Missing { launcher: launcher.name, set: launcher.marker, missing: name };
        number(name)?.ok_or(missing)
    };
    let (size, rank) = (must(launcher.size)?, must(launcher.rank)?);
    let bad = |name, value: usize, expected: String| LaunchError::Bad {
        launcher: launcher.name,
        name,
        value: value.to_string(),
        expected,
    };
    if size == 0 || !size.is_power_of_two() {
        return Err(bad(launcher.size, size, "a power of two".into()));
    }
    if rank >= size {
        return Err(bad(launcher.rank, rank, format!("less than {}, {size}", launcher.size)));
    }
    let local_rank = number(launcher.local_rank)?.unwrap_or(rank);
    let given_local_size = number(launcher.local_size)?;
    let local_size = given_local_size.unwrap_or(size);
    let meeting = match (var("MASTER_ADDR"), var("MASTER_PORT")) {
        // torchrun may keep a store of its own at that port.
        (Some(host), Some(port)) if var("TORCHELASTIC_USE_AGENT_STORE").as_deref() != Some("True") => {
            let bad = || LaunchError::Bad {
                launcher: launcher.name,
                name: "MASTER_PORT",
                value: port.clone(),
                expected: "a port from 1 to 65535".into(),
            };
            let port: NonZeroU16 = port.parse().map_err(|_| bad())?;
            Meeting::Tcp(format!("{host}:{port}"))
        }
        _ => Meeting::Folder(shared.to_owned()),
    };
    let run = var(RUN_ID).unwrap_or_else(|| {
        let parts = launcher.run.iter().filter_map(|name| var(name));
        // Launchers on two machines that share a folder may name their runs alike.
        let machine = (given_local_size == Some(size)).then(rendezvous::host_name);
        let unnamed = launcher.name == "mpiexec" && var("I_MPI_HYDRA_UUID").is_none();
        let proxy = machine.as_ref().filter(|_| unnamed).and_then(|_| ancestor("hydra_pmi_proxy"));
        let parts: Vec<String> = parts.chain(machine).chain(proxy).collect();
        format!("{} {}", launcher.name, parts.join("."))
    });
    let key = var(RANK_KEY).map_or_else(|| KeySource::Folder(shared.to_owned()), KeySource::Given);
    Ok(Some(RankPlace { rank, size, local_rank, local_size, run, meeting, key }))
}

/// The number for one node in Slurm's list, such as `8(x2),4` for nodes of 8, 8 and 4.
fn of_node(list: &str, node: usize) -> Option<usize> {
    let mut nodes = 0;
    for part in list.split(',') {
        let (number, times) = match part.split_once("(x") {
            Some((number, times)) => (number, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        nodes += times;
        if node < nodes {
            return number.parse().ok();
        }
    }
    None
}

/// The process id of the nearest ancestor of this name.
fn ancestor(name: &str) -> Option<String> {
    let mut process = "self".to_owned();
    loop {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let field =
            |key: &str| status.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()));
        if field("Name:")? == name {
            return Some(process);
        }
        process = field("PPid:").filter(|parent| parent != "0")?;
    }
}

/// Whether a launcher has started this process, alone or with others.
pub fn is_launched(var: &dyn Fn(&str) -> Option<String>) -> bool {
    LAUNCHERS.iter().any(|launcher| var(launcher.marker).is_some())
}

/// The variables that make a process a rank, of every launcher.
pub fn names() -> impl Iterator<Item = &'static str> {
    let of = |launcher: &Launcher| {
        [launcher.marker, launcher.rank, launcher.size, launcher.local_rank, launcher.local_size]
    };
    LAUNCHERS.iter().flat_map(of).chain([RUN_ID, RANK_KEY])
}

/// The environment of a process that `runner` itself starts.
pub fn variables(place: &RankPlace) -> Vec<(&'static str, String)> {
    let key = match &place.key {
        KeySource::Given(key) => Some((RANK_KEY, key.clone())),
        KeySource::Folder(_) => None,
    };
    let fixed = [
        ("RANK", place.rank.to_string()),
        ("WORLD_SIZE", place.size.to_string()),
        ("LOCAL_RANK", place.local_rank.to_string()),
        ("LOCAL_WORLD_SIZE", place.local_size.to_string()),
        (RUN_ID, place.run.clone()),
    ];
    fixed.into_iter().chain(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Option<RankPlace>, LaunchError> {
        let var =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        place(&var, Path::new("runs/.ranks"))
    }

    #[test]
    fn each_launcher_gives_a_place_and_none_gives_none() {
        assert_eq!(from(&[]), Ok(None));
        // A batch script of Slurm's, before any srun.
        assert_eq!(from(&[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), Ok(None));
        let folder = || Meeting::Folder("runs/.ranks".into());
        let key = || KeySource::Folder("runs/.ranks".into());
        let here = |run: &str| format!("{run}.{}", rendezvous::host_name());

        let srun = [
            ("SLURM_JOB_ID", "7"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "16"),
            ("SLURM_PROCID", "11"),
            ("SLURM_LOCALID", "3"),
            ("SLURM_STEP_TASKS_PER_NODE", "8(x2)"),
            ("SLURM_NODEID", "1"),
        ];
        let expected = RankPlace {
            rank: 11,
            size: 16,
            local_rank: 3,
            local_size: 8,
            run: "srun 7.0".into(),
            meeting: folder(),
            key: key(),
        };
        assert_eq!(from(&srun), Ok(Some(expected)));

        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "prterun-a-9@1"),
        ];
        let expected = RankPlace {
            rank: 1,
            size: 2,
            local_rank: 1,
            local_size: 2,
            run: here("mpirun prterun-a-9@1"),
            meeting: folder(),
            key: key(),
        };
        assert_eq!(from(&mpirun), Ok(Some(expected)));

        let mpiexec =
            [("PMI_RANK", "5"), ("PMI_SIZE", "8"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "4")];
        let uuid = [&mpiexec[..], &[("I_MPI_HYDRA_UUID", "4f2a")]].concat();
        let expected = RankPlace {
            rank: 5,
            size: 8,
            local_rank: 1,
            local_size: 4,
            run: "mpiexec 4f2a".into(),
            meeting: folder(),
            key: key(),
        };
        assert_eq!(from(&uuid), Ok(Some(expected)));
        // Started through srun, which has one task for each node.
        let by_srun = [&srun[..], &mpiexec].concat();
        assert_eq!(from(&by_srun).expect("whole").expect("a place").run, "mpiexec 7");
        // `srun --mpi=pmi2`.
        let pmi2 = [&srun[..], &[("PMI_RANK", "11"), ("PMI_SIZE", "16")]].concat();
        assert_eq!(from(&pmi2).expect("whole").expect("a place").run, "srun 7.0");

        let torchrun = [
            ("RANK", "0"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "0"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "29500"),
        ];
        let place = from(&torchrun).expect("whole").expect("a place");
        assert_eq!(place.meeting, Meeting::Tcp("node1:29500".into()));
        assert_eq!(place.run, here("torchrun node1.29500"));
        let agent = [&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(from(&agent).expect("whole").expect("a place").meeting, folder());
    }

    #[test]
    fn ancestors_are_found_by_name() {
        assert_eq!(ancestor("no process has this name"), None);
        let own = std::fs::read_to_string("/proc/self/comm").expect("Linux");
        assert_eq!(ancestor(own.trim()), Some("self".into()));
    }

    #[test]
    fn slurm_tells_the_ranks_of_each_node() {
        for (list, expected) in [
            ("4", &[Some(4), None][..]),
            ("3,1", &[Some(3), Some(1), None]),
            ("8(x2),4,2(x3)", &[Some(8), Some(8), Some(4), Some(2), Some(2), Some(2), None]),
            ("8(x", &[None]),
            ("", &[None]),
        ] {
            let found: Vec<Option<usize>> = (0..expected.len()).map(|node| of_node(list, node)).collect();
            assert_eq!(found, expected, "{list}");
        }
    }

    #[test]
    fn what_runner_gives_its_own_processes_reads_back() {
        let place = RankPlace {
            rank: 2,
            size: 4,
            local_rank: 2,
            local_size: 4,
            run: "mine".into(),
            meeting: Meeting::Folder("runs/.ranks".into()),
            key: KeySource::Given("a key of the run".into()),
        };
        let variables = variables(&place);
        assert!(variables.iter().all(|(given, _)| names().any(|name| name == *given)));
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(from(&variables), Ok(Some(place)));
    }

    #[test]
    fn half_a_place_and_impossible_numbers_are_refused_by_name() {
        let text = |variables| from(variables).expect_err("refused").to_string();
        assert!(text(&[("WORLD_SIZE", "2")]).contains("torchrun set WORLD_SIZE, but not RANK"));
        assert!(
            text(&[("WORLD_SIZE", "6"), ("RANK", "0")])
                .contains("WORLD_SIZE is `6`, expected a power of two")
        );
        assert!(
            text(&[("WORLD_SIZE", "2"), ("RANK", "2")])
                .contains("RANK is `2`, expected less than WORLD_SIZE, 2")
        );
        assert!(text(&[("WORLD_SIZE", "two"), ("RANK", "0")]).contains("`two`, expected a number"));
        for port in ["abc", "0", "65536", ""] {
            let at = [("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "node1"), ("MASTER_PORT", port)];
            let found = from(&at).expect_err("refused").to_string();
            assert!(found.contains(&format!("MASTER_PORT is `{port}`, expected a port")), "{found}");
        }
    }
}
