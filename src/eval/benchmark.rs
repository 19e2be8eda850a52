//! LAMBADA, ARC-easy and PIQA as lm-eval asks and scores them.
//!
//! A file has a question a line, as JSON with the fields of the data set that lm-eval reads:
//!
//! * LAMBADA (Paperno et al. 2016; `EleutherAI/lambada_openai`): `text`. The last word, behind the last
//!   space, is to be guessed from all before it. `lambada_acc`: the share of words whose every token is the
//!   likeliest; `lambada_perplexity`: e to the mean surprise at a word in nats.
//! * ARC-easy (Clark et al. 2018; `allenai/ai2_arc`): `question`, `choices.text`, `choices.label` and
//!   `answerKey`, which is one of the labels.
//! * PIQA (Bisk et al. 2020; `baber/piqa`): `goal`, `sol1`, `sol2` and `label`, 0 or 1.
//!
//! The last two ask `Question: …\nAnswer:` and count how often the right choice is the least surprising:
//! `…_acc` by the sum of its log-likelihoods, `…_acc_norm` by that sum divided by the choice's characters.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::EvalError;
use super::harness::{encode_pair, equal_continuations, is_python_space, lines};
use super::multiple_choice::Decision;
use super::rows::{self, NotFiniteLoss, ScoredRow, Scorer, Surprise};
use crate::data::{DataError, Tokenizer, prepare};
use crate::model::Gpt2;
use crate::ops::Ops;
use crate::parallel::Solo;
use crate::proof::json;

/// A task of lm-eval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Benchmark {
    Lambada,
    ArcEasy,
    Piqa,
}

impl Benchmark {
    /// lm-eval's name, which the names of the scores begin with.
    pub fn name(self) -> &'static str {
        match self {
            Benchmark::Lambada => "lambada",
            Benchmark::ArcEasy => "arc_easy",
            Benchmark::Piqa => "piqa",
        }
    }

    /// Names of the scores, in the order of [`QuestionSet::scores`].
    pub fn scores(self) -> [&'static str; 2] {
        match self {
            Benchmark::Lambada => ["lambada_acc", "lambada_perplexity"],
            Benchmark::ArcEasy => ["arc_easy_acc", "arc_easy_acc_norm"],
            Benchmark::Piqa => ["piqa_acc", "piqa_acc_norm"],
        }
    }

    /// The data set on Hugging Face whose fields are read.
    fn data_set(self) -> &'static str {
        match self {
            Benchmark::Lambada => "EleutherAI/lambada_openai",
            Benchmark::ArcEasy => "allenai/ai2_arc",
            Benchmark::Piqa => "baber/piqa",
        }
    }

    fn of_line(self) -> &'static str {
        match self {
            Benchmark::Lambada => "a LAMBADA task",
            Benchmark::ArcEasy => "an ARC-easy task",
            Benchmark::Piqa => "a PIQA task",
        }
    }
}

/// The fields by which a line of each task is known.
const FIELDS: [(&str, &[&str]); 4] = [
    ("arc_easy", &["question", "choices", "answerKey"]),
    ("piqa", &["goal", "sol1", "sol2"]),
    ("hellaswag", &["ctx", "endings"]),
    ("lambada", &["text"]),
];

/// A context and what may follow it, as text: with its space before it.
#[derive(Debug, PartialEq, Eq)]
struct Wording {
    context: String,
    continuations: Vec<String>,
    label: usize,
}

/// A context and what may follow it, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub context: Vec<u16>,
    pub continuations: Vec<Vec<u16>>,
    /// Characters (Unicode code points) of each continuation, without the space before it.
    pub chars: Vec<usize>,
    /// The right one.
    pub label: usize,
}

/// A file of questions, checked against the model it is for.
#[derive(Clone, Debug)]
pub struct QuestionSet {
    path: PathBuf,
    of: Benchmark,
    questions: Vec<Question>,
    /// T: tokens of the longest sequence the model was trained on. A longer row loses the start of its
    /// context.
    seq_len: usize,
}

impl QuestionSet {
    /// Reads a file of questions.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, is empty or is faulty; a continuation that does not fit `seq_len`.
    pub fn open(
        path: &Path,
        of: Benchmark,
        tokenizer: &Tokenizer,
        vocab: usize,
        seq_len: usize,
    ) -> Result<QuestionSet, EvalError> {
        let bytes = prepare::read_whole(path).map_err(|error| match error {
            DataError::Io { reason, .. } => {
                EvalError::Unread { path: path.into(), data_set: of.data_set(), reason }
            }
            other => other.into(),
        })?;
        QuestionSet::parse(path, &bytes, of, tokenizer, vocab, seq_len)
    }

    /// [`QuestionSet::open`] of a file that is in memory.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        of: Benchmark,
        tokenizer: &Tokenizer,
        vocab: usize,
        seq_len: usize,
    ) -> Result<QuestionSet, EvalError> {
        let text = prepare::json_lines(path, bytes)?;
        if text.is_empty() {
            return Err(EvalError::Empty { path: path.into(), found: "the file is empty" });
        }
        let question = |line: &str| question(word(of, line)?, tokenizer);
        let questions = lines(path, of.of_line(), &text, question)?;
        let set = QuestionSet { path: path.into(), of, questions, seq_len };
        for (i, Question { context, continuations, .. }) in set.questions.iter().enumerate() {
            rows::check(path, || set.place(i), context, continuations, vocab, seq_len)?;
        }
        Ok(set)
    }

    pub fn benchmark(&self) -> Benchmark {
        self.of
    }

    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// A remark on questions with equal choices.
    pub fn equal_choices(&self) -> Option<String> {
        let all = self.questions.iter().enumerate();
        equal_continuations(&self.path, all.map(|(i, of)| (self.place(i), of.continuations.as_slice())))
    }

    fn place(&self, i: usize) -> String {
        format!("line {}", i + 1)
    }

    /// Rows to be scored: a question and one continuation each.
    pub fn rows(&self) -> usize {
        self.questions.iter().map(|question| question.continuations.len()).sum()
    }

    /// The surprise at each continuation of each question, in the file's order.
    ///
    /// # Errors
    ///
    /// A loss that is not finite, and errors of the device.
    pub fn surprises<O: Ops>(
        &self,
        ops: &mut O,
        model: &mut Gpt2<O>,
        losses: &mut O::Buf,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Vec<Surprise>>, EvalError> {
        let row =
            |of: &Question, continuation: &Vec<u16>| ScoredRow::new(&of.context, continuation, self.seq_len);
        let all = self.questions.iter();
        let rows: Vec<ScoredRow> =
            all.flat_map(|of| of.continuations.iter().map(move |tokens| row(of, tokens))).collect();
        let mut room = (self.of == Benchmark::Lambada).then(|| model.logit_rows(ops)).transpose()?;
        let not_finite = |loss: NotFiniteLoss| self.not_finite(loss);
        let scorer = Scorer { ops, model, losses, likeliest: room.as_mut() };
        let mut surprises = rows::surprises(scorer, &mut Solo, &rows, &not_finite, progress)?.into_iter();
        let of = |question: &Question| surprises.by_ref().take(question.continuations.len()).collect();
        Ok(self.questions.iter().map(of).collect())
    }

    fn not_finite(&self, NotFiniteLoss { row, token, loss }: NotFiniteLoss) -> EvalError {
        let ends = self.questions.iter().scan(0, |end, question| {
            *end += question.continuations.len();
            Some(*end)
        });
        let before: Vec<usize> = ends.take_while(|end| *end <= row).collect();
        let (path, place) = (self.path.clone(), self.place(before.len()));
        EvalError::NotFinite { path, place, completion: row - before.last().unwrap_or(&0), token, loss }
    }

    /// What each accuracy chooses among a question's continuations, and from which numbers.
    fn decisions(&self, question: &Question, surprises: &[Surprise]) -> [Decision; 2] {
        let nats: Vec<f64> = surprises.iter().map(|surprise| surprise.nats).collect();
        let a_char = nats.iter().zip(&question.chars).map(|(nats, chars)| nats / *chars as f64).collect();
        [nats, a_char].map(Decision::of)
    }

    /// The scores of [`Benchmark::scores`].
    pub fn scores(&self, surprises: &[Vec<Surprise>]) -> [f64; 2] {
        let count = self.questions.len() as f64;
        if self.of == Benchmark::Lambada {
            let words = || surprises.iter().flatten();
            let greedy = words().filter(|word| word.greedy == Some(true)).count();
            return [greedy as f64 / count, libm::exp(words().map(|word| word.nats).sum::<f64>() / count)];
        }
        let mut right = [0usize; 2];
        for (question, surprises) in self.questions.iter().zip(surprises) {
            for (right, decision) in right.iter_mut().zip(self.decisions(question, surprises)) {
                *right += usize::from(decision.picked == question.label);
            }
        }
        right.map(|right| right as f64 / count)
    }

    /// The numbers behind the scores, an object a question. Of LAMBADA the surprise at the word and whether
    /// it is greedy; of the others, as of HellaSwag, under each score's name a number for each choice and
    /// the choice with the lowest.
    pub fn details(&self, surprises: &[Vec<Surprise>]) -> Vec<Value> {
        let object = |(i, (question, surprises)): (usize, (&Question, &Vec<Surprise>))| {
            let mut object = serde_json::json!({"task": i, "label": question.label});
            if self.of == Benchmark::Lambada {
                let Surprise { nats, tokens, greedy } = surprises[0];
                object = serde_json::json!({"task": i});
                object["lambada"] = serde_json::json!({"nats": nats, "tokens": tokens, "greedy": greedy});
                return object;
            }
            for (name, Decision { values, picked }) in
                self.of.scores().into_iter().zip(self.decisions(question, surprises))
            {
                object[name] = serde_json::json!({"values": values, "picked": picked});
            }
            object
        };
        self.questions.iter().zip(surprises).enumerate().map(object).collect()
    }
}

fn question(wording: Wording, tokenizer: &Tokenizer) -> Result<Question, String> {
    let Wording { context, continuations, label } = wording;
    let mut of = Question { context: Vec::new(), continuations: Vec::new(), chars: Vec::new(), label };
    for (i, continuation) in continuations.iter().enumerate() {
        // All agree on the context: it is encoded alone.
        let (context, tokens) = encode_pair(tokenizer, &context, continuation);
        if tokens.is_empty() {
            return Err(format!("choice {i} has no tokens of its own"));
        }
        of.context = context;
        of.continuations.push(tokens);
        of.chars.push(continuation.chars().count() - 1);
    }
    Ok(of)
}

/// A line in lm-eval's words.
fn word(of: Benchmark, line: &str) -> Result<Wording, String> {
    let line: Map<String, Value> = json::parse_line(line.as_bytes()).map_err(shown)?;
    let line = QuestionLine { of, fields: &line };
    match of {
        Benchmark::Lambada => line.lambada(),
        Benchmark::ArcEasy => line.arc(),
        Benchmark::Piqa => line.piqa(),
    }
}

/// The fields of a line; those that the task does not read are ignored.
struct QuestionLine<'a> {
    of: Benchmark,
    fields: &'a Map<String, Value>,
}

impl QuestionLine<'_> {
    /// A field, or that it is missing and whose fields these are.
    fn field(&self, name: &str) -> Result<&Value, String> {
        self.fields.get(name).ok_or_else(|| {
            let known = FIELDS.iter().find(|(of, fields)| {
                *of != self.of.name() && fields.iter().all(|field| self.fields.contains_key(*field))
            });
            match known {
                Some((of, fields)) => format!(
                    "the field `{name}` is missing\n  hint: `{}` are the fields of `--task {of}`",
                    fields.join("`, `")
                ),
                None => format!(
                    "the field `{name}` is missing\n  hint: the fields are those of Hugging Face's data set \
                     `{}`",
                    self.of.data_set()
                ),
            }
        })
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        text(self.field(name)?, &format!("`{name}`"))
    }

    fn lambada(&self) -> Result<Wording, String> {
        let text = self.text("text")?;
        let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
        if word.is_empty() {
            return Err("`text` has no last word: it is empty or ends in a space".into());
        }
        Ok(Wording { context: context.into(), continuations: vec![format!(" {word}")], label: 0 })
    }

    fn arc(&self) -> Result<Wording, String> {
        let choices = self.field("choices")?;
        let list = |name: &str| {
            let list = choices.get(name).and_then(Value::as_array);
            let list = list.ok_or_else(|| format!("`choices.{name}` is missing, or no list"))?;
            let of = |(i, value)| text(value, &format!("`choices.{name}` {i}"));
            list.iter().enumerate().map(of).collect::<Result<Vec<&str>, String>>()
        };
        let (texts, labels) = (list("text")?, list("label")?);
        if texts.len() != labels.len() || texts.len() < 2 {
            return Err(format!(
                "it has {} choices and {} labels, expected two or more, and as many labels",
                texts.len(),
                labels.len()
            ));
        }
        if let Some(i) = (1..labels.len()).find(|i| labels[..*i].contains(&labels[*i])) {
            return Err(format!("two choices have the label `{}`", shown(labels[i])));
        }
        let key = self.text("answerKey")?;
        let label = labels.iter().position(|label| *label == key).ok_or_else(|| {
            format!(
                "`answerKey` is `{}`, expected one of the labels `{}`",
                shown(key),
                shown(labels.join("`, `"))
            )
        })?;
        choose(self.text("question")?, &texts, label)
    }

    fn piqa(&self) -> Result<Wording, String> {
        let choices = [self.text("sol1")?, self.text("sol2")?];
        let label = self.field("label")?;
        // In quotes where the rows were a table's.
        let label = match label.as_u64().or_else(|| label.as_str()?.parse().ok()) {
            Some(label @ (0 | 1)) => label as usize,
            _ => {
                return Err(format!(
                    "the label is {}, expected 0 or 1\n  hint: the labels of the test set are not public; \
                     the validation set has them",
                    shown(label)
                ));
            }
        };
        choose(self.text("goal")?, &choices, label)
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("{name} is {}, expected text in quotes", shown(value)))
}

/// The start of what stands in a file, which may be of any length.
fn shown(found: impl std::fmt::Display) -> String {
    let text = found.to_string();
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The question that lm-eval asks, and its choices.
fn choose(question: &str, choices: &[&str], label: usize) -> Result<Wording, String> {
    if let Some(i) = choices.iter().position(|choice| choice.chars().all(is_python_space)) {
        return Err(format!("choice {i} has no text"));
    }
    Ok(Wording {
        context: format!("Question: {question}\nAnswer:"),
        continuations: choices.iter().map(|choice| format!(" {choice}")).collect(),
        label,
    })
}

#[cfg(test)]
#[path = "benchmark_tests.rs"]
mod tests;
