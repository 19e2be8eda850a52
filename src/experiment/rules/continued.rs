//! `optimizer.from_init`: an experiment that goes on with the optimizer of a checkpoint.

use super::Rules;
use crate::experiment::origin::Origin;

impl Rules {
    /// There is a checkpoint to go on from.
    pub(super) fn continued(&mut self) {
        if self.boolean("optimizer.from_init") == Some(true)
            && self.text("model.init").is_none()
            && self.truly_missing(&["model.init"])
        {
            let message = "`optimizer.from_init` goes on from the checkpoint that `model.init` names, and \
                           that names none";
            let fault = self.clash(message.to_string(), &["optimizer.from_init"]);
            self.refuse(fault.hint("set `model.init`, such as \"run:NAME@STEP\"".to_string()));
        }
    }

    /// Whether `data.offset` follows from the checkpoint and the data: the optimizer goes on, and no layer
    /// gives it.
    pub(super) fn offset_follows(&self) -> bool {
        self.boolean("optimizer.from_init") == Some(true)
            && self.origin("data.offset").is_none_or(|origin| origin == Origin::Default)
    }
}
