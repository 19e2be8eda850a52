//! A thread that reads the GPU's sensors through NVML every few seconds while a run goes on.
//!
//! NVML is found at run time; without it a run continues after one warning. The thread only reads: it changes
//! no clock, no mode, no bit.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::store::gpu_log::{GpuLog, GpuSample};

/// What a run and its console share with the thread.
#[derive(Debug, Default)]
pub struct SharedReadings {
    /// Optimizer steps done, set by the listener of the training.
    pub step: AtomicU64,
    latest: Mutex<Option<GpuSample>>,
}

impl SharedReadings {
    /// The newest sample, if there is any.
    pub fn latest(&self) -> Option<GpuSample> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, sample: GpuSample) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(sample);
    }
}

/// The thread at work; dropping it ends the thread.
pub struct GpuWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl GpuWatch {
    /// Samples the GPU of this `uuid` (as the driver's interface prints it, dashes or not) every `every` into
    /// `path`.
    ///
    /// # Errors
    /// NVML is missing, does not know the GPU, or the file cannot be opened; a one-line message.
    pub fn start(
        uuid: &str,
        every: Duration,
        path: &Path,
        shared: Arc<SharedReadings>,
    ) -> Result<GpuWatch, String> {
        let (nvml, uuid) = find(uuid)?;
        let mut log = GpuLog::open(path).map_err(|error| error.to_string())?;
        GpuWatch::each(nvml, uuid, every, move |mut sample| {
            sample.step = shared.step.load(Ordering::Relaxed);
            // A full disk does not stop the run here; the files that matter do.
            let _ = log.append(&sample);
            shared.set(sample);
        })
    }

    /// Gives `take` a sample of a GPU that was found, now and `every` so long.
    fn each(
        nvml: Nvml,
        uuid: String,
        every: Duration,
        mut take: impl FnMut(GpuSample) + Send + 'static,
    ) -> Result<GpuWatch, String> {
        let (stop, stopped) = channel::<()>();
        let body = move || {
            let Ok(device) = nvml.device_by_uuid(uuid.as_str()) else { return };
            loop {
                take(sample(&device));
                if stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("gpu sensors".into())
            .spawn(body)
            .map_err(|error| error.to_string())?;
        Ok(GpuWatch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for GpuWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The mean load of a GPU while a part of a program ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuLoad {
    /// Clock of the multiprocessors.
    pub sm_mhz: f64,
    pub watts: f64,
    pub limit_watts: f64,
}

impl GpuLoad {
    /// Of the samples that have all three; `None` without any.
    fn mean(samples: &[GpuSample]) -> Option<GpuLoad> {
        let whole: Vec<[f64; 3]> = samples
            .iter()
            .filter_map(|sample| Some([f64::from(sample.sm_mhz?), sample.watts?, sample.limit_watts?]))
            .collect();
        let mean = |which: usize| whole.iter().map(|one| one[which]).sum::<f64>() / whole.len() as f64;
        (!whole.is_empty()).then(|| GpuLoad { sm_mhz: mean(0), watts: mean(1), limit_watts: mean(2) })
    }
}

/// Reads the load of a GPU twenty times a second.
pub struct LoadMeter {
    _watch: GpuWatch,
    samples: Arc<Mutex<Vec<GpuSample>>>,
}

impl LoadMeter {
    /// # Errors
    /// As [`GpuWatch::start`].
    pub fn start(uuid: &str) -> Result<LoadMeter, String> {
        let (nvml, uuid) = find(uuid)?;
        let samples = Arc::<Mutex<Vec<GpuSample>>>::default();
        let into = Arc::clone(&samples);
        let take = move |sample| into.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        let watch = GpuWatch::each(nvml, uuid, Duration::from_millis(50), take)?;
        Ok(LoadMeter { _watch: watch, samples })
    }

    /// The mean since the last call of this, or since the start.
    pub fn take(&self) -> Option<GpuLoad> {
        let samples = std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner));
        GpuLoad::mean(&samples)
    }
}

/// What a lock records of the GPU beside its name: maximum clocks and power, and error counts of its memory.
/// Empty without NVML; a value that this GPU does not report is left out.
pub fn environment(uuid: &str) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let Ok(nvml) = open() else { return facts };
    let Ok(device) = nvml.device_by_uuid(with_dashes(uuid).as_str()) else { return facts };
    let mut fact = |name: &str, value: Result<String, NvmlError>| {
        if let Ok(value) = value {
            facts.insert(format!("gpu.{name}"), value);
        }
    };
    let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Aggregate).map(|count| count.to_string());
    fact("max_sm_mhz", device.max_clock_info(Clock::SM).map(|mhz| mhz.to_string()));
    fact("max_memory_mhz", device.max_clock_info(Clock::Memory).map(|mhz| mhz.to_string()));
    fact(
        "power_limit_watts",
        device.enforced_power_limit().map(|milliwatts| (milliwatts / 1000).to_string()),
    );
    fact(
        "ecc",
        device.is_ecc_enabled().map(|ecc| if ecc.currently_enabled { "on" } else { "off" }.to_owned()),
    );
    fact("ecc_corrected", ecc(MemoryError::Corrected));
    fact("ecc_uncorrected", ecc(MemoryError::Uncorrected));
    facts
}

/// Drivers install the versioned name; the plain one comes with development packages.
fn open() -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init().or_else(|_| Nvml::init())
}

/// NVML, and its name of this GPU.
fn find(uuid: &str) -> Result<(Nvml, String), String> {
    let nvml = open().map_err(|error| error.to_string())?;
    let uuid = with_dashes(uuid);
    nvml.device_by_uuid(uuid.as_str()).map_err(|error| format!("GPU {uuid}: {error}"))?;
    Ok((nvml, uuid))
}

/// The sensors now; the step is the caller's to fill in.
fn sample(device: &Device<'_>) -> GpuSample {
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1e3;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    GpuSample {
        step: 0,
        unix_ms: since.map_or(0, |since| since.as_millis() as u64),
        sm_mhz: device.clock_info(Clock::SM).ok(),
        memory_mhz: device.clock_info(Clock::Memory).ok(),
        watts: device.power_usage().ok().map(watts),
        limit_watts: device.enforced_power_limit().ok().map(watts),
        celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        busy_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        memory_used_mib: device.memory_info().ok().map(|memory| memory.used >> 20),
        throttled: device.current_throttle_reasons().map_or_else(|_| Vec::new(), reasons),
    }
}

/// Reasons as words. An idle GPU is not throttled, nor one whose clock was set by the user.
fn reasons(found: ThrottleReasons) -> Vec<String> {
    const WORDS: [(ThrottleReasons, &str); 5] = [
        (ThrottleReasons::SW_POWER_CAP, "power_cap"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power_brake"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "thermal"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "thermal_hw"),
        (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
    ];
    WORDS.iter().filter(|(reason, _)| found.contains(*reason)).map(|(_, word)| (*word).to_owned()).collect()
}

/// `GPU-8-4-4-4-12`, as NVML wants it.
fn with_dashes(uuid: &str) -> String {
    let digits: String = uuid.trim_start_matches("GPU-").chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return uuid.to_owned();
    }
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    format!("GPU-{}", parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_of_the_driver_becomes_that_of_nvml() {
        assert_eq!(
            with_dashes("GPU-0123456789abcdef0123456789abcdef"),
            "GPU-01234567-89ab-cdef-0123-456789abcdef"
        );
        assert_eq!(
            with_dashes("GPU-01234567-89ab-cdef-0123-456789abcdef"),
            "GPU-01234567-89ab-cdef-0123-456789abcdef"
        );
        assert_eq!(with_dashes("MIG-1"), "MIG-1");
    }

    #[test]
    fn a_load_is_the_mean_of_the_samples_that_are_whole() {
        let sample = |sm_mhz, watts| GpuSample {
            sm_mhz: Some(sm_mhz),
            watts: Some(watts),
            limit_watts: Some(700.0),
            ..GpuSample::default()
        };
        let without = GpuSample { watts: None, ..sample(100, 0.0) };
        let load = GpuLoad::mean(&[sample(1400, 650.0), without, sample(1500, 690.0)]);
        assert_eq!(load, Some(GpuLoad { sm_mhz: 1450.0, watts: 670.0, limit_watts: 700.0 }));
        assert_eq!(GpuLoad::mean(&[]), None);
    }

    #[test]
    fn throttling_is_told_in_words_and_idling_is_none() {
        assert_eq!(reasons(ThrottleReasons::SW_POWER_CAP | ThrottleReasons::GPU_IDLE), ["power_cap"]);
        assert!(reasons(ThrottleReasons::GPU_IDLE).is_empty());
    }

    #[test]
    fn without_nvml_the_reason_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu.jsonl");
        match GpuWatch::start("GPU-0", Duration::from_secs(1), &path, Arc::default()) {
            Err(why) => assert!(!why.is_empty() && !why.contains('\n'), "{why}"),
            Ok(_) => panic!("no GPU has that name"),
        }
    }
}
