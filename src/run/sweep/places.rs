//! What the processes of a sweep that train at the same time may use: GPUs are divided among them, and each
//! divides the CPUs by their number. No bit depends on it.

use crate::experiment::{DeviceKind, Experiment};
use crate::ops::cuda::driver;
use crate::run::UsageError;
use crate::units::noun;

/// The variable that names the GPUs of a process.
pub(super) const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Refuses a sweep of which every member needs a GPU where there is none.
///
/// # Errors
/// There is no usable GPU.
pub(super) fn require_device<'a>(
    mut experiments: impl Iterator<Item = &'a Experiment>,
) -> anyhow::Result<()> {
    if experiments.all(|experiment| experiment.device.kind == DeviceKind::Cuda) {
        driver::gpus()?;
    }
    Ok(())
}

/// For each of `jobs` processes the GPUs that it may see; none where they are not divided.
///
/// # Errors
/// There are fewer GPUs than processes, or none.
pub(super) fn places<'a>(
    mut experiments: impl Iterator<Item = &'a Experiment>,
    jobs: usize,
) -> anyhow::Result<Vec<Option<String>>> {
    let undivided = vec![None; jobs];
    let kind = experiments.find_map(|experiment| match experiment.device.kind {
        DeviceKind::Cpu | DeviceKind::Mirror => None,
        kind => Some(kind),
    });
    let (Some(kind), 2..) = (kind, jobs) else { return Ok(undivided) };
    let gpus = match (driver::gpus(), kind) {
        (Ok(gpus), _) => gpus.len(),
        (Err(_), DeviceKind::Auto) => return Ok(undivided),
        (Err(error), _) => return Err(error.into()),
    };
    if jobs > gpus {
        return Err(UsageError(format!(
            "`--jobs {jobs}` is more than the {gpus} {} here\n  hint: at most one member trains on a GPU",
            noun(gpus, "GPU")
        ))
        .into());
    }
    Ok(divided(std::env::var(VISIBLE).ok().as_deref(), gpus, jobs).into_iter().map(Some).collect())
}

/// Equal shares of neighbouring GPUs, called as `visible` calls them.
fn divided(visible: Option<&str>, gpus: usize, jobs: usize) -> Vec<String> {
    let names: Vec<String> = match visible {
        Some(visible) => visible.split(',').take(gpus).map(|name| name.trim().to_owned()).collect(),
        None => (0..gpus).map(|number| number.to_string()).collect(),
    };
    names.chunks(gpus / jobs).take(jobs).map(|share| share.join(",")).collect()
}

#[cfg(test)]
mod tests {
    use super::divided;

    #[test]
    fn gpus_are_divided_evenly_and_keep_the_names_that_the_environment_gives_them() {
        assert_eq!(divided(None, 8, 8), ["0", "1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(divided(None, 8, 3), ["0,1", "2,3", "4,5"]);
        assert_eq!(divided(Some("3, GPU-aa,7"), 3, 3), ["3", "GPU-aa", "7"]);
        assert_eq!(divided(Some("3,5,-1,7"), 2, 2), ["3", "5"]);
    }
}
