//! Names that other programs have for what is a key or a word here: nanoGPT, nanochat, llm.c, torchtitan,
//! Levanter and Hugging Face's `transformers`. They are for hints alone; none is accepted.

/// The last part of a key elsewhere, and the key here.
const KEYS: [(&str, &str); 58] = [
    ("adam_eps", "optimizer.epsilon"),
    ("batch_size", "batch.micro"),
    ("block_size", "batch.seq_len"),
    ("context_length", "model.context"),
    ("d_model", "model.channels"),
    ("dataset", "data.train"),
    ("depth", "model.layers"),
    ("device_batch_size", "batch.micro"),
    ("dim", "model.channels"),
    ("dtype", "precision.compute"),
    ("eps", "optimizer.epsilon"),
    ("eval_interval", "eval.every"),
    ("eval_iters", "eval.val_tokens"),
    ("eval_steps", "eval.every"),
    ("grad_accum", "batch.tokens"),
    ("gradient_accumulation_steps", "batch.tokens"),
    ("hidden_dim", "model.channels"),
    ("hidden_size", "model.channels"),
    ("init_from", "model.init"),
    ("log_freq", "log.every"),
    ("log_interval", "log.every"),
    ("logging_steps", "log.every"),
    ("lr", "schedule.learning_rate"),
    ("lr_scheduler_type", "schedule.kind"),
    ("max_grad_norm", "optimizer.grad_clip"),
    ("max_iters", "schedule.steps"),
    ("max_lr", "schedule.learning_rate"),
    ("max_norm", "optimizer.grad_clip"),
    ("max_position_embeddings", "model.context"),
    ("max_seq_len", "batch.seq_len"),
    ("max_steps", "schedule.steps"),
    ("min_lr", "schedule.final_fraction"),
    ("min_lr_ratio", "schedule.final_fraction"),
    ("n_ctx", "model.context"),
    ("n_embd", "model.channels"),
    ("n_head", "model.heads"),
    ("n_heads", "model.heads"),
    ("n_kv_head", "model.kv_heads"),
    ("n_kv_heads", "model.kv_heads"),
    ("n_layer", "model.layers"),
    ("n_layers", "model.layers"),
    ("n_positions", "model.context"),
    ("num_attention_heads", "model.heads"),
    ("num_epochs", "schedule.epochs"),
    ("num_heads", "model.heads"),
    ("num_hidden_layers", "model.layers"),
    ("num_iterations", "schedule.steps"),
    ("num_key_value_heads", "model.kv_heads"),
    ("num_layers", "model.layers"),
    ("num_train_steps", "schedule.steps"),
    ("per_device_train_batch_size", "batch.micro"),
    ("save_steps", "checkpoint.every"),
    ("sequence_length", "batch.seq_len"),
    ("tie_word_embeddings", "model.tied_head"),
    ("total_batch_size", "batch.tokens"),
    ("vocab_size", "model.vocab"),
    ("warmup_iters", "schedule.warmup_steps"),
    ("wd", "optimizer.weight_decay"),
];

/// Keys elsewhere of what is not here at all: no similar name would be right.
const NOT_HERE: [&str; 5] = ["attn_pdrop", "dropout", "embd_pdrop", "label_smoothing", "resid_pdrop"];

/// A word elsewhere, and the word here.
const WORDS: [(&str, &str); 8] = [
    ("adam", "adamw"),
    ("bfloat16", "bf16"),
    ("float32", "fp32"),
    ("gpt-2", "gpt2"),
    ("gpu", "cuda"),
    ("relu_squared", "relu2"),
    ("rope", "rotary"),
    ("warmup_stable_decay", "wsd"),
];

/// The key here that another program calls `leaf`.
pub(super) fn key(leaf: &str) -> Option<&'static str> {
    found(&KEYS, leaf)
}

/// Whether other programs have a key of this name for what this one does not do.
pub(super) fn is_of_what_is_not_here(leaf: &str) -> bool {
    NOT_HERE.contains(&leaf)
}

/// The word here for a word of another program.
pub(super) fn word(elsewhere: &str) -> Option<&'static str> {
    found(&WORDS, elsewhere)
}

fn found(names: &[(&str, &'static str)], elsewhere: &str) -> Option<&'static str> {
    names.iter().find(|(name, _)| *name == elsewhere).map(|(_, here)| *here)
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn names_elsewhere_lead_to_keys_that_are_there_and_are_none_themselves() {
        let ours: Vec<&str> = schema::KEYS.iter().map(|key| key.name).collect();
        for (name, here) in KEYS {
            assert!(ours.contains(&here), "{here}");
            assert!(!ours.iter().any(|key| key.rsplit('.').next() == Some(name)), "{name}");
        }
        assert!(KEYS.is_sorted() && WORDS.is_sorted() && NOT_HERE.is_sorted());
    }
}
