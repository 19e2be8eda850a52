//! What `proof.audit_every` needs.

use super::Rules;

impl Rules {
    /// Arithmetic that the mirror has, and the root of every step.
    pub(super) fn audit(&mut self, device: &str, compute: &str) {
        let Some(1..) = self.int("proof.audit_every") else { return };
        if device == "cpu" || compute == "fp32" || compute == "tf32" {
            let message = "`proof.audit_every` audits what a Hopper GPU computes in bf16".to_string();
            let fault = self.clash(message, &["proof.audit_every", "device.kind", "precision.compute"]);
            let hint = "set it to 0: `proof.replay_every` and `runner verify --replay` check other devices";
            self.refuse(fault.hint(hint.to_string()));
        }
        if let Some(every) = self.int("proof.digest_every").filter(|every| *every != 1) {
            let message = format!(
                "`proof.audit_every` needs the state root of every step, and `proof.digest_every` is {every}"
            );
            let fault = self.clash(message, &["proof.audit_every", "proof.digest_every"]);
            self.refuse(fault.hint("set `proof.digest_every` to 1".to_string()));
        }
        if let Some(fusion @ 1..) = self.int("kernels.gelu_fusion") {
            let message = format!(
                "`kernels.gelu_fusion` = {fusion} is cuBLASLt's own arithmetic, which no audit can repeat"
            );
            let fault = self.clash(message, &["proof.audit_every", "kernels.gelu_fusion"]);
            self.refuse(fault.hint("set `kernels.gelu_fusion` to 0".to_string()));
        }
    }
}
