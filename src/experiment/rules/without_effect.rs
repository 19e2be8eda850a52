//! Keys that a person gave and that others leave without an effect. No fault: a sweep over those others sets
//! them for all.

use super::super::layers::LayerSource;
use super::Rules;

impl Rules {
    pub(super) fn without_effect(&mut self) {
        let is = |key: &str, number: u64| self.int(key) == Some(number);
        let mut remarks = Vec::new();
        let mut nothing = |key: &str, does: bool, why: String| {
            if does && self.is_given(key) {
                remarks.push(format!("`{key}` does nothing: {why}"));
            }
        };
        let keeps_some = self.int("checkpoint.keep_every").is_some_and(|every| every > 0);
        nothing(
            "checkpoint.keep_every",
            keeps_some && is("checkpoint.keep_last", 0),
            "`checkpoint.keep_last` is 0, which keeps every checkpoint".into(),
        );
        nothing(
            "proof.audit_pieces",
            !is("proof.audit_pieces", 32) && is("proof.audit_every", 0),
            "`proof.audit_every` is 0".into(),
        );
        let device = self.text("device.kind").unwrap_or_default();
        let compute = self.text("precision.compute").unwrap_or_default();
        let (is_cpu, is_gpu) = (device == "cpu" || device == "mirror", device == "cuda");
        let by_device = format!("`device.kind` is \"{device}\"");
        let fuses = self.int("kernels.gelu_fusion").is_some_and(|fusion| fusion > 0);
        nothing("kernels.gelu_fusion", fuses && is_cpu, by_device.clone());
        nothing(
            "kernels.gelu_fusion",
            fuses && !is_cpu && (compute == "fp32" || compute == "tf32"),
            format!("`precision.compute` is \"{compute}\""),
        );
        let no_graph = self.boolean("kernels.cuda_graph") == Some(false);
        nothing("kernels.cuda_graph", no_graph && is_cpu, by_device.clone());
        let threads = self.int("device.threads").is_some_and(|threads| threads > 0);
        nothing("device.threads", threads && is_gpu, by_device.clone());
        let narrow = self.text("device.simd").is_some_and(|simd| simd != "auto");
        nothing("device.simd", narrow && is_gpu, by_device.clone());
        let on_host = self.text("memory.partial_sums").as_deref() == Some("host");
        let one_worker = is("parallel.workers", 1);
        let by_worker = "`parallel.workers` is 1";
        nothing("memory.partial_sums", on_host && is_cpu, by_device);
        nothing("memory.partial_sums", on_host && !is_cpu && one_worker, by_worker.into());
        // How many ranks there are, `--ranks` and launchers say too.
        for (key, default) in [("parallel.zero", 1), ("parallel.timeout_s", 600)] {
            nothing(key, one_worker && !is(key, default), by_worker.into());
        }
        let decays = self.number("schedule.decay_fraction");
        let decays = decays.filter(|_| self.text("schedule.kind").as_deref() == Some("wsd"));
        // 0 where epochs say how long.
        let steps = self.int("schedule.steps").filter(|steps| *steps > 0);
        nothing(
            "schedule.decay_fraction",
            decays.zip(steps).is_some_and(|(share, steps)| share > 0.0 && share * (steps as f64) < 0.5),
            "it is less than half a step of the run".into(),
        );
        let never_falls = decays == Some(0.0);
        nothing(
            "schedule.final_fraction",
            never_falls && self.number("schedule.final_fraction").is_some_and(|share| share != 0.1),
            "`schedule.decay_fraction` is 0".into(),
        );
        if self.text("eval.hellaswag").is_some() && is("eval.every", 0) && self.is_given("eval.hellaswag") {
            remarks.push("`eval.hellaswag` is for `runner eval` alone: `eval.every` is 0".into());
        }
        self.layers.remarks.extend(remarks);
    }

    /// Whether the value is from the command line, the environment or the file that is run, and not from one
    /// that it extends or from the program's own.
    fn is_given(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|(layer, _)| match layer.source {
            LayerSource::Set { .. } | LayerSource::Variable { .. } => true,
            LayerSource::File(_) => layer.order == 0 && !self.layers.shipped,
            LayerSource::Defaults | LayerSource::Derived => false,
        })
    }
}
