//! `gpu.jsonl`: readings of the GPU's sensors while a run goes on, a line a sample.
//!
//! Times and temperatures differ from run to run, so they stay out of metrics and ledger. A resumed
//! run goes on at the end of the file; each line says at which step it was taken.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::append::{AppendError, AppendFile};

/// The sensors at one moment. `None` is a sensor that this GPU does not have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuSample {
    /// Optimizer steps done.
    pub step: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    pub sm_mhz: Option<u32>,
    pub memory_mhz: Option<u32>,
    pub watts: Option<f64>,
    pub limit_watts: Option<f64>,
    pub celsius: Option<u32>,
    /// Share of the time in which a kernel ran, percent.
    pub busy_percent: Option<u32>,
    pub memory_used_mib: Option<u64>,
    /// Why the clock is throttled, one word for each reason; empty when it is not, or the GPU is idle.
    pub throttled: Vec<String>,
}

impl GpuSample {
    /// `1755 MHz 688 W 64 °C, power_cap`.
    pub fn to_text(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.sm_mhz.map(|mhz| format!("{mhz} MHz")));
        parts.extend(self.watts.map(|watts| format!("{watts:.0} W")));
        parts.extend(self.celsius.map(|celsius| format!("{celsius} °C")));
        let mut text = parts.join(" ");
        for reason in &self.throttled {
            text.push_str(", ");
            text.push_str(reason);
        }
        text
    }
}

/// Appends samples to a run's `gpu.jsonl`.
#[derive(Debug)]
pub struct GpuLog {
    file: AppendFile,
}

impl GpuLog {
    /// Opens the log at `path`, or starts it; a line that a kill left unfinished is cut.
    pub fn open(path: &Path) -> Result<GpuLog, AppendError> {
        let file = if path.exists() {
            AppendFile::look(path, u64::MAX, |_| Ok(0))?.open()?
        } else {
            AppendFile::create(path)?
        };
        Ok(GpuLog { file })
    }

    pub fn append(&mut self, sample: &GpuSample) -> Result<(), AppendError> {
        let line = serde_json::to_string(sample).expect("a struct of numbers and strings always serialises");
        self.file.write(&format!("{line}\n"))
    }
}

/// The last whole line of a log, if there is one that can be read. Reads the end alone: logs of days are
/// long.
pub fn last(path: &Path) -> Option<GpuSample> {
    const END: u64 = 4096;
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(END))).ok()?;
    let mut bytes = Vec::new();
    file.take(END).read_to_end(&mut bytes).ok()?;
    super::append::complete_lines(&bytes).last().and_then(|line| serde_json::from_slice(line).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_go_on_behind_those_of_an_earlier_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu.jsonl");
        assert_eq!(last(&path), None);
        let sample = GpuSample {
            step: 7,
            watts: Some(688.4),
            celsius: Some(64),
            throttled: vec!["power_cap".into()],
            ..GpuSample::default()
        };
        GpuLog::open(&path).unwrap().append(&sample).unwrap();
        std::fs::write(&path, [std::fs::read(&path).unwrap(), b"{\"step\":".to_vec()].concat()).unwrap();
        let next = GpuSample { step: 8, ..sample.clone() };
        GpuLog::open(&path).unwrap().append(&next).unwrap();
        assert_eq!(last(&path), Some(next));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2, "the torn line is gone");
        assert_eq!(sample.to_text(), "688 W 64 °C, power_cap");
    }
}
