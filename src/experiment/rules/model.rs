//! `[model]`: sizes, from a model to start from or a descriptor, and what the blocks are made of.

use std::path::Path;

use figment::value::Value;

use super::{FROM_INIT, Rules};
use crate::experiment::check::RUN_PREFIX;
use crate::experiment::descriptor::{self, GivenValue};
use crate::experiment::diagnostics::Fault;
use crate::experiment::init_models::{InitError, InitModels};
use crate::experiment::origin::Origin;

/// The widest head that the CUDA attention kernels take.
const CUDA_HEAD_SIZE: u64 = 128;

impl Rules {
    /// The checkpoint of a run that `model.init` names. And the sizes that are not given, from the model; it
    /// is opened only if one is missing, so a resolved experiment does not need it.
    pub(super) fn init(&mut self, models: &dyn InitModels) {
        const SIZES: [&str; 3] = ["model.layers", "model.heads", "model.channels"];
        let missing = SIZES.iter().any(|key| self.get(key).is_none());
        let Some(mut path) = self.text("model.init") else { return };
        if let Some(run) = path.strip_prefix(RUN_PREFIX) {
            match models.checkpoint(run) {
                Ok(folder) => {
                    let why = format!("{path}, {}", self.origin("model.init").expect("it has a value"));
                    let Some(text) = folder.to_str() else {
                        let message =
                            format!("`{path}` is in `{}`, a path that is not UTF-8", folder.display());
                        let hint = "rename its folder".into();
                        return self.no_init_model(InitError { message, hint, damage: false });
                    };
                    path = text.to_owned();
                    self.derive("model.init", path.as_str(), why);
                }
                Err(error) => return self.no_init_model(error),
            }
        }
        if self.text("model.descriptor").is_some() || !missing || !self.truly_missing(&["model.descriptor"]) {
            return;
        }
        match models.sizes(Path::new(&path)) {
            Ok(model) => {
                let sizes = [
                    ("model.layers", model.layers),
                    ("model.heads", model.heads),
                    ("model.channels", model.channels),
                    ("model.context", model.context),
                    ("model.vocab", model.vocab),
                ];
                for (key, size) in sizes {
                    if self.get(key).is_none() && self.truly_missing(&[key]) {
                        self.derive(key, size as u64, FROM_INIT);
                    }
                }
                for (key, value) in model.parts() {
                    let value = Value::serialize(value).expect("a word, a flag or a number");
                    self.derive_part(key, value, FROM_INIT);
                }
            }
            Err(error) => self.no_init_model(error),
        }
    }

    /// The tokenizer of the model to start from, unless a layer gives one.
    pub(super) fn init_tokenizer(&mut self, models: &dyn InitModels) {
        const KEY: &str = "data.tokenizer";
        let given = self.origin(KEY).is_some_and(|origin| origin != Origin::Default);
        let Some(path) = self.text("model.init").filter(|_| !given && self.truly_missing(&[KEY])) else {
            return;
        };
        match models.tokenizer(Path::new(&path)) {
            Ok(None) => {}
            Ok(Some(tokenizer)) => {
                self.derive(KEY, Value::serialize(tokenizer).expect("a word"), FROM_INIT);
            }
            Err(error) => {
                let fault = self.init_fault(error);
                self.layers.faulty.insert(KEY);
                self.refuse(fault);
            }
        }
    }

    /// Gives a key of what the blocks are made of a value, unless a layer does.
    fn derive_part(&mut self, key: &'static str, value: impl Into<Value>, why: &str) {
        let given = self.origin(key).is_some_and(|origin| origin != Origin::Default);
        if !given && self.truly_missing(&[key]) {
            self.derive(key, value, why);
        }
    }

    fn no_init_model(&mut self, error: InitError) {
        let fault = self.init_fault(error);
        self.layers.faulty.extend(["model.layers", "model.heads", "model.channels"]);
        self.refuse(fault);
    }

    fn init_fault(&self, InitError { message, hint, damage }: InitError) -> Fault {
        Fault { damage, ..self.clash(message, &["model.init"]).hint(hint) }
    }

    /// Sizes from the descriptor or one by one; context, vocabulary and heads.
    pub(super) fn model(&mut self) {
        const SIZES: [&str; 3] = ["model.layers", "model.heads", "model.channels"];
        if let Some(name) = self.text("model.descriptor") {
            match descriptor::sizes(&name) {
                Ok(sizes) => {
                    let why = format!("from descriptor {name}");
                    self.derive("model.layers", sizes.layers as u64, &*why);
                    self.derive("model.heads", sizes.heads as u64, &*why);
                    self.derive("model.channels", sizes.channels as u64, &*why);
                    if self.get("model.context").is_none() && self.truly_missing(&["model.context"]) {
                        self.derive("model.context", sizes.context as u64, &*why);
                    }
                    for (key, part) in descriptor::parts(&name) {
                        match part {
                            GivenValue::Word(word) => self.derive_part(key, *word, &why),
                            GivenValue::Flag(flag) => self.derive_part(key, *flag, &why),
                        }
                    }
                }
                Err(unknown) => {
                    let fault = self.clash(unknown.message, &["model.descriptor"]).hint(unknown.hint);
                    self.layers.faulty.extend(SIZES);
                    self.layers.faulty.insert("model.context");
                    self.refuse(fault);
                }
            }
        } else if self.truly_missing(&["model.descriptor"]) && self.truly_missing(&SIZES) {
            let missing: Vec<&str> = SIZES.into_iter().filter(|key| self.get(key).is_none()).collect();
            if missing.len() == SIZES.len() {
                let hint = "set `model.descriptor`, such as \"d12\", or `model.layers`, `model.heads` and \
                            `model.channels`, or `model.init`";
                self.refuse(Fault::new("the experiment has no model").hint(hint.to_string()));
            } else if !missing.is_empty() {
                let fault = self.clash(format!("`{}` must be given too", missing.join("` and `")), &SIZES);
                self.refuse(
                    fault.hint(
                        "a model without a descriptor needs `layers`, `heads` and `channels`".to_string(),
                    ),
                );
            }
        }

        if let (Some(channels), Some(heads)) = (self.int("model.channels"), self.int("model.heads")) {
            let size = channels / heads;
            if channels % heads != 0 {
                let message =
                    format!("`model.channels` = {channels} is not a multiple of `model.heads` = {heads}");
                let fault = self.clash(message, &["model.channels", "model.heads"]);
                self.refuse(fault.hint(format!(
                    "the nearest multiples are {} and {}",
                    size.max(1) * heads,
                    (size + 1) * heads
                )));
            } else if self.text("device.kind").as_deref() == Some("mirror")
                && (!matches!(size, 64 | 128) || channels % 8 != 0)
            {
                let message = format!(
                    "{channels} channels in heads of {size} have no mirror: it has heads of 64 and 128, as \
                     Hopper's kernels do"
                );
                let fault = self.clash(message, &["model.heads", "model.channels", "device.kind"]);
                self.refuse(fault);
            } else if self.text("device.kind").as_deref() == Some("cuda")
                && (size > CUDA_HEAD_SIZE || channels % 8 != 0)
            {
                let message = format!(
                    "{channels} channels in heads of {size} cannot run on CUDA: it takes multiples of 8 in \
                     heads of at most {CUDA_HEAD_SIZE}"
                );
                let fault = self.clash(message, &["model.heads", "model.channels", "device.kind"]);
                self.refuse(fault);
            }
        }

        self.parts();

        // The context and the sequence length follow each other when one is left out.
        let (context, seq_len) = (self.get("model.context"), self.get("batch.seq_len"));
        let free = |key: &str| self.truly_missing(&[key]);
        match (context, seq_len) {
            (Some(context), None) if free("batch.seq_len") => {
                self.derive("batch.seq_len", context, "from model.context")
            }
            (None, Some(seq_len)) if free("model.context") => {
                self.derive("model.context", seq_len, "from batch.seq_len")
            }
            (None, None) if free("model.context") && free("batch.seq_len") => {
                self.derive("batch.seq_len", 1024u64, "default");
                self.derive("model.context", 1024u64, "from batch.seq_len");
            }
            _ => {}
        }
        if let (Some(seq_len), Some(context)) = (self.int("batch.seq_len"), self.int("model.context"))
            && seq_len > context
        {
            let message = format!("sequences of {seq_len} tokens do not fit a model that reads {context}");
            let fault = self.clash(message, &["batch.seq_len", "model.context", "model.descriptor"]);
            self.refuse(fault.hint("lower `batch.seq_len` or raise `model.context`".to_string()));
        }

        let Some(tokenizer) = self.text("data.tokenizer") else { return };
        let needed: u64 = if tokenizer == "byte" { 257 } else { 50257 };
        if self.get("model.vocab").is_none() && self.truly_missing(&["model.vocab"]) {
            self.derive("model.vocab", needed, "from data.tokenizer");
        }
        if let Some(vocab) = self.int("model.vocab")
            && vocab < needed
        {
            let message = format!(
                "a vocabulary of {vocab} is too small for the tokenizer \"{tokenizer}\", which has {needed} \
                 tokens"
            );
            let fault = self.clash(message, &["model.vocab", "data.tokenizer"]);
            let hint = match self.text("model.init") {
                None => "leave `model.vocab` out: it follows the tokenizer",
                Some(_) if vocab >= 257 => {
                    "the vocabulary is that of the model in `model.init`, and has room for the tokenizer \
                     \"byte\" alone"
                }
                Some(_) => {
                    "the vocabulary is that of the model in `model.init`, and has room for no tokenizer here"
                }
            };
            self.refuse(fault.hint(hint.to_string()));
        }
    }

    /// What the blocks are made of, and what goes with it.
    fn parts(&mut self) {
        let rotary = self.text("model.positions").as_deref() == Some("rotary");
        if !rotary && self.number("model.rope_theta").is_some_and(|theta| theta != 10_000.0) {
            let message = "`model.rope_theta` does nothing: the positions are not rotary".to_string();
            let fault = self.clash(message, &["model.rope_theta", "model.positions"]);
            self.refuse(fault.hint("set `model.positions` to \"rotary\"".to_string()));
        }
        if let (true, Some(channels), Some(heads)) =
            (rotary, self.int("model.channels"), self.int("model.heads"))
            && channels % heads == 0
            && !(channels / heads).is_multiple_of(2)
        {
            let message = format!(
                "heads of {} cannot be rotated: rotary positions turn pairs of their channels",
                channels / heads
            );
            let fault = self.clash(message, &["model.positions", "model.channels", "model.heads"]);
            self.refuse(fault.hint("choose `model.heads` so that a head is even".to_string()));
        }
        self.kv_heads();
        self.parts_of_heads(rotary);
        self.parts_of_logits();
        if let (Some(fusion @ 1..), Some(activation @ ("relu2" | "swiglu"))) =
            (self.int("kernels.gelu_fusion"), self.text("model.activation").as_deref())
        {
            let message = format!(
                "`kernels.gelu_fusion` = {fusion} fuses GELU, and `model.activation` is \"{activation}\""
            );
            let fault = self.clash(message, &["kernels.gelu_fusion", "model.activation"]);
            self.refuse(fault.hint("set `kernels.gelu_fusion` to 0".to_string()));
        }
    }
}

impl Rules {
    /// Numbers that fp32, which computes with them, can hold: a smaller cap would divide by zero.
    fn parts_of_logits(&mut self) {
        // The least normal number of fp32, rounded up.
        for (key, least) in [("model.logit_softcap", 1e-3), ("optimizer.z_loss", 1.2e-38)] {
            if let Some(value) = self.number(key).filter(|value| *value != 0.0 && *value < least) {
                let message = format!("`{key}` = {value:?} is too small to compute with");
                let fault = self.clash(message, &[key]);
                self.refuse(fault.hint(format!("set it to 0, which is none, or to at least {least:?}")));
            }
        }
    }

    /// Heads of keys and values, which have one spelling where every head has its own.
    fn kv_heads(&mut self) {
        let (Some(heads), Some(kv_heads @ 1..)) = (self.int("model.heads"), self.int("model.kv_heads"))
        else {
            return;
        };
        if kv_heads == heads {
            self.derive("model.kv_heads", 0u64, "as many as model.heads");
        } else if heads % kv_heads != 0 {
            let message = format!("`model.kv_heads` = {kv_heads} does not divide `model.heads` = {heads}");
            let fault = self.clash(message, &["model.kv_heads", "model.heads", "model.descriptor"]);
            let divisors = (1..heads).filter(|divisor| heads % divisor == 0).map(|d| d.to_string());
            let divisors: Vec<String> = divisors.collect();
            let choice = match &divisors[..] {
                [] => "leave it out, or".to_string(),
                [one] => format!("choose {one}, or"),
                many => format!("choose one of {}, or", many.join(", ")),
            };
            self.refuse(fault.hint(format!("{choice} 0, which is {heads}")));
        } else if let (Some("cuda"), Some(channels)) =
            (self.text("device.kind").as_deref(), self.int("model.channels"))
            && !(2 * kv_heads * (channels / heads)).is_multiple_of(8)
        {
            let message = format!(
                "{kv_heads} heads of {} for keys and as many for values cannot run on CUDA: it takes \
                 multiples of 8",
                channels / heads
            );
            let fault =
                self.clash(message, &["model.kv_heads", "model.heads", "model.channels", "device.kind"]);
            self.refuse(fault);
        }
    }

    /// What the operations on queries and keys ask of a head.
    fn parts_of_heads(&mut self, rotary: bool) {
        let qk_norm = self.boolean("model.qk_norm") == Some(true);
        let (Some(channels), Some(heads)) = (self.int("model.channels"), self.int("model.heads")) else {
            return;
        };
        let size = channels / heads;
        // What CUDA and the mirror refuse with any blocks was said before.
        let is_taken = channels.is_multiple_of(heads) && channels.is_multiple_of(8) && size <= CUDA_HEAD_SIZE;
        let on_gpu = self.text("device.kind").as_deref() == Some("cuda");
        if on_gpu && is_taken && (rotary || qk_norm) && !size.is_multiple_of(8) {
            let key = if rotary { "model.positions" } else { "model.qk_norm" };
            let message = format!("heads of {size} cannot run on CUDA with `{key}`: it takes multiples of 8");
            let fault = self.clash(message, &[key, "model.heads", "model.channels", "device.kind"]);
            self.refuse(fault);
        }
    }
}
