//! What the tasks of lm-eval, the harness whose scores are published, have in common: how a line is read, and
//! how a context and a continuation become tokens. Held to lm-eval 0.4.13 (`TemplateLM.loglikelihood`).

use std::path::Path;

use rayon::prelude::*;

use super::EvalError;
use crate::data::Tokenizer;
use crate::proof::json;

/// Every line of `text` as `parse` reads it, in order; `of` says what a line is: `a HellaSwag task`.
///
/// # Errors
///
/// The first line that `parse` refuses.
pub fn lines<T: Send>(
    path: &Path,
    of: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, String> + Sync,
) -> Result<Vec<T>, EvalError> {
    let lines: Vec<&str> = text.lines().collect();
    // Collected before the first error is looked for, so that it is the first in the file.
    let parse = |line: &&str| match line.trim().is_empty() {
        true => Err("it is empty".to_owned()),
        false => {
            let cr = || json::lone_cr(line.as_bytes()).unwrap_or_default();
            parse(line).map_err(|why| if why.contains("hint: ") { why } else { why + cr() })
        }
    };
    let parsed: Vec<Result<T, String>> = lines.par_iter().map(parse).collect();
    let numbered = parsed.into_iter().zip(1..);
    numbered
        .map(|(of_line, line)| of_line.map_err(|why| EvalError::Line { path: path.into(), line, of, why }))
        .collect()
}

/// How many places a remark lists.
const LISTED: usize = 6;

/// A remark on the tasks, by their places in the file, that have equal continuations to choose from.
///
/// lm-eval takes the first of the highest scores (`numpy.argmax`), and so does this program.
pub fn equal_continuations<'a>(
    path: &Path,
    tasks: impl Iterator<Item = (String, &'a [Vec<u16>])>,
) -> Option<String> {
    let equal = |all: &[Vec<u16>]| all.iter().enumerate().any(|(at, one)| all[..at].contains(one));
    let mut places: Vec<String> = tasks.filter(|(_, all)| equal(all)).map(|(place, _)| place).collect();
    // A task in two wordings is one.
    places.dedup();
    let more = places.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let listed: Vec<&str> = places.iter().take(LISTED).map(String::as_str).collect();
    (!places.is_empty()).then(|| {
        format!(
            "equal choices in `{}`: {}{more}. Of equal scores the first is picked, as by lm-eval: a label \
             that names the second is never met",
            path.display(),
            listed.join(", ")
        )
    })
}

/// What Python's `str.strip` takes for white space: Unicode's, and four separators of ASCII.
pub fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Context and continuation encoded as one text, cut where the context alone would end. White space at
/// the end of the context belongs to the continuation, for a token starts with its space. No context at all
/// is the end of a text before.
pub fn encode_pair(tokenizer: &Tokenizer, context: &str, continuation: &str) -> (Vec<u16>, Vec<u16>) {
    if context.is_empty() {
        return (vec![tokenizer.eot()], tokenizer.encode(continuation));
    }
    let whole = tokenizer.encode(&format!("{context}{continuation}"));
    let context = tokenizer.encode(context.trim_end_matches(is_python_space));
    let continuation = whole.get(context.len()..).unwrap_or_default().to_vec();
    (context, continuation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;

    #[test]
    fn space_at_the_end_of_a_context_moves_to_the_continuation() {
        let gpt2 = Tokenizer::new(experiment::Tokenizer::Gpt2);
        for space in [" ", "\u{1f} \u{a0}"] {
            let (context, continuation) = encode_pair(&gpt2, &format!("How to{space}"), " swim");
            assert_eq!(gpt2.decode(&context), "How to");
            assert_eq!(gpt2.decode(&continuation), format!("{space} swim"));
        }
        assert_eq!(encode_pair(&gpt2, "", " swim"), (vec![50_256], gpt2.encode(" swim")));
        assert!(encode_pair(&gpt2, " ", "swim").0.is_empty(), "white space is no context");
    }
}
