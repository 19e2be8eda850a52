use super::*;
use crate::eval::multiple_choice::tests::{self as tasks, cpu};
use crate::experiment;
use crate::ops::{Rows, cpu::Cpu};

const ARC: &str = concat!(
    r#"{"id": "x", "question": "Which is metal?", "choices": {"text": ["oak", "fer étiré", "ice"], "#,
    r#""label": ["1", "2", "3"]}, "answerKey": "2"}"#
);
const PIQA: &str = r#"{"goal": "Open a jar", "sol1": "Turn the lid.", "sol2": "Sing.", "label": 0}"#;
const LAMBADA: &str = r#"{"text": "She gave it to her\nsister , who gave it back to Anna"}"#;

fn gpt2() -> Tokenizer {
    Tokenizer::new(experiment::Tokenizer::Gpt2)
}

fn parse(of: Benchmark, text: &str) -> Result<QuestionSet, String> {
    let parsed = QuestionSet::parse(Path::new("q.jsonl"), text.as_bytes(), of, &gpt2(), 50_257, 64);
    parsed.map_err(|error| error.to_string())
}

#[test]
fn questions_are_worded_as_in_the_harness() {
    let worded = |of, line: &str| {
        let Wording { context, continuations, label } = word(of, line).unwrap();
        (context, continuations.join("|"), label)
    };
    let of = |context: &str, continuations: &str, label| (context.into(), continuations.into(), label);
    assert_eq!(
        worded(Benchmark::ArcEasy, ARC),
        of("Question: Which is metal?\nAnswer:", " oak| fer étiré| ice", 1)
    );
    assert_eq!(
        worded(Benchmark::Piqa, PIQA),
        of("Question: Open a jar\nAnswer:", " Turn the lid.| Sing.", 0)
    );
    assert_eq!(
        worded(Benchmark::Lambada, LAMBADA),
        of("She gave it to her\nsister , who gave it back to", " Anna", 0)
    );
    let chars = |of, line| parse(of, line).unwrap().questions[0].chars.clone();
    assert_eq!(chars(Benchmark::ArcEasy, ARC), [3, 9, 3], "code points, without the space");
}

#[test]
fn questions_with_equal_choices_are_named_by_line() {
    assert_eq!(parse(Benchmark::Piqa, PIQA).unwrap().equal_choices(), None);
    let equal = PIQA.replace("Sing.", "Turn the lid.");
    let remark =
        parse(Benchmark::Piqa, &format!("{PIQA}\n{equal}\n{PIQA}\n{equal}\n")).unwrap().equal_choices();
    let remark = remark.unwrap();
    assert!(
        remark.starts_with("equal choices in `q.jsonl`: line 2, line 4. Of equal scores the first"),
        "{remark}"
    );
    let many = vec![ARC.replace(r#""ice""#, r#""oak""#); 9].join("\n");
    let remark = parse(Benchmark::ArcEasy, &many).unwrap().equal_choices().unwrap();
    assert!(remark.contains("line 6 and 3 more."), "{remark}");
    // A word to be guessed has no choices.
    assert_eq!(parse(Benchmark::Lambada, &format!("{LAMBADA}\n{LAMBADA}")).unwrap().equal_choices(), None);
}

#[test]
fn a_word_alone_follows_the_end_of_a_text() {
    let set = parse(Benchmark::Lambada, r#"{"text": "Anna"}"#).unwrap();
    let Question { context, continuations, .. } = &set.questions[0];
    assert_eq!((&context[..], gpt2().decode(&continuations[0])), (&[50_256][..], " Anna".into()));
    let error = parse(Benchmark::Lambada, r#"{"text": "  Anna"}"#).unwrap_err();
    assert!(error.contains("`q.jsonl` line 1 has no context: nothing but white space"), "{error}");
    assert!(error.contains("hint: white space belongs to the word behind it"), "{error}");
}

#[test]
fn each_fault_names_its_line_and_field() {
    use Benchmark::{ArcEasy, Lambada, Piqa};
    for (of, good, bad, says) in [
        (ArcEasy, ARC, "<html>", "is not an ARC-easy task: expected value at column 1"),
        (ArcEasy, ARC, "[1]", "is not an ARC-easy task: invalid type: sequence, expected a map"),
        (
            ArcEasy,
            ARC,
            PIQA,
            "`choices` is missing\n  hint: `goal`, `sol1`, `sol2` are the fields of `--task piqa`",
        ),
        (
            Piqa,
            PIQA,
            ARC,
            "`sol1` is missing\n  hint: `question`, `choices`, `answerKey` are the fields of `--task arc",
        ),
        (Piqa, PIQA, LAMBADA, "`text` are the fields of `--task lambada`"),
        (
            Lambada,
            LAMBADA,
            "{}",
            "`text` is missing\n  hint: the fields are those of Hugging Face's data set `Eleuther",
        ),
        (Lambada, LAMBADA, r#"{"text": "to Anna "}"#, "`text` has no last word"),
        (Lambada, LAMBADA, r#"{"text": ""}"#, "`text` has no last word"),
        (Lambada, LAMBADA, r#"{"text": ["a"]}"#, "`text` is [\"a\"], expected text in quotes"),
        (
            ArcEasy,
            ARC,
            &ARC.replace("\"2\"}", "\"B\"}"),
            "`answerKey` is `B`, expected one of the labels `1`, `2`, `3`",
        ),
        (ArcEasy, ARC, &ARC.replace("\"2\"}", "2}"), "`answerKey` is 2, expected text in quotes"),
        (ArcEasy, ARC, &ARC.replace("\"2\", \"3\"", "\"2\", \"2\""), "two choices have the label `2`"),
        (ArcEasy, ARC, &ARC.replace("\"1\", ", ""), "it has 3 choices and 2 labels"),
        (ArcEasy, ARC, &ARC.replace("\"ice\"", "\" \""), "choice 2 has no text"),
        (ArcEasy, ARC, &ARC.replace("\"ice\"", "7"), "`choices.text` 2 is 7, expected text in quotes"),
        (ArcEasy, ARC, &ARC.replace("\"label\"", "\"labels\""), "`choices.label` is missing, or no list"),
        (Piqa, PIQA, &PIQA.replace("Sing.", ""), "choice 1 has no text"),
        (Piqa, PIQA, &PIQA.replace(": 0", ": 2"), "the label is 2, expected 0 or 1"),
        (Piqa, PIQA, &PIQA.replace(": 0", ": -1"), "the label is -1, expected 0 or 1"),
        (Piqa, PIQA, &PIQA.replace(": 0", ": 0.5"), "the label is 0.5, expected 0 or 1"),
        (Piqa, PIQA, &PIQA.replace(": 0", ": true"), "the label is true, expected 0 or 1"),
        (Piqa, PIQA, " ", "is not a PIQA task: it is empty"),
        (Lambada, LAMBADA, r#"{"text": "a b", "text": "c d"}"#, "the key `text` is there twice"),
        (ArcEasy, ARC, &ARC.replace("\"label\"", "\"text\""), "the key `text` is there twice"),
    ] {
        let error = parse(of, &format!("{good}\n{bad}\n{good}")).unwrap_err();
        assert!(error.contains("`q.jsonl` line 2") && error.contains(says), "{error}\nlacks: {says}");
    }
    let endless = PIQA.replace(": 0", &format!(": \"{}\"", "é".repeat(9000)));
    let error = parse(Piqa, &endless).unwrap_err();
    assert!(error.contains("ééé…, expected 0 or 1") && error.len() < 700, "{error}");
    for nothing in ["", "\u{feff}"] {
        assert!(parse(Benchmark::Piqa, nothing).unwrap_err().contains("the file is empty"));
    }
    assert_eq!(parse(Piqa, &PIQA.replace(": 0", ": \"1\"")).unwrap().questions[0].label, 1, "in quotes");
    let long = PIQA.replace("Sing", &"so ".repeat(70));
    let error = parse(Benchmark::Piqa, &format!("{PIQA}\n{long}")).unwrap_err();
    assert!(error.contains("line 2: a completion of 71 tokens does not fit sequences of 64"), "{error}");
    let bytes = QuestionSet::parse(Path::new("q"), &[b'{', 0xff], Benchmark::Piqa, &gpt2(), 50_257, 64);
    assert!(bytes.unwrap_err().to_string().contains("not UTF-8 text: invalid at byte 1 (0xff)"));
}

#[test]
fn accuracies_are_by_sum_and_by_character_and_the_first_of_equals_wins() {
    let surprise = |nats| Surprise { nats, tokens: 1, greedy: None };
    let set = parse(Benchmark::ArcEasy, &format!("{ARC}\n{ARC}\n{ARC}\n{ARC}")).unwrap();
    // Characters are 3, 9 and 3; the label is the second.
    let nats = [[9.0, 8.0, 8.0], [1.0, 2.7, 1.0], [3.0, 9.0, 4.0], [1.0, 3.1, 2.0]];
    let surprises: Vec<_> = nats.iter().map(|nats| nats.map(surprise).to_vec()).collect();
    assert_eq!(set.scores(&surprises), [0.25, 0.5]);
    let details = set.details(&surprises);
    assert_eq!(
        details[2]["arc_easy_acc_norm"],
        serde_json::json!({"values": [1.0, 1.0, 4.0 / 3.0], "picked": 0})
    );
    assert_eq!(details[1]["arc_easy_acc"]["picked"], 0);

    let set = parse(Benchmark::Lambada, &format!("{LAMBADA}\n{LAMBADA}")).unwrap();
    let word = |nats, greedy| vec![Surprise { nats, tokens: 2, greedy: Some(greedy) }];
    let [acc, perplexity] = set.scores(&[word(1.0, true), word(3.0, false)]);
    assert_eq!((acc, perplexity), (0.5, libm::exp(2.0)));
}

/// Each word is guessed alone by the logits of [`Gpt2::next_token_logits`], token by token.
#[test]
fn a_word_is_greedy_where_each_of_its_tokens_has_the_largest_logit() {
    let mut ops = cpu();
    let (mut model, _) = tasks::model(&mut ops, Rows { batch: 1, seq: 150 });
    let likeliest = |ops: &mut Cpu, model: &mut Gpt2<Cpu>, tokens: &[u16]| {
        let logits = model.next_token_logits(ops, tokens).unwrap();
        (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u16
    };
    // A word that the model itself would write, the same with its last token changed, and with its first.
    let mut rows = Vec::new();
    for context in [3, 40, 100, 149] {
        let mut tokens: Vec<u16> = (0..context).map(|i| (i * 7 + context) % 250).collect();
        for _ in 0..(150 - context).min(3) {
            tokens.push(likeliest(&mut ops, &mut model, &tokens));
        }
        let scored = tokens.len() - usize::from(context);
        for change in [None, Some(tokens.len() - 1), Some(usize::from(context))] {
            let mut row = ScoredRow { tokens: tokens.clone(), scored };
            change.into_iter().for_each(|at| row.tokens[at] = (row.tokens[at] + 1) % 257);
            rows.push((row, Some(change.is_none())));
        }
    }
    let (rows, expected): (Vec<ScoredRow>, Vec<Option<bool>>) = rows.into_iter().unzip();
    for (batch, seq) in [(1, 150), (64, 150), (2, 256)] {
        let (mut model, mut losses) = tasks::model(&mut ops, Rows { batch, seq });
        let mut room = model.logit_rows(&mut ops).unwrap();
        let scorer =
            Scorer { ops: &mut ops, model: &mut model, losses: &mut losses, likeliest: Some(&mut room) };
        let never = |loss| panic!("{loss:?}");
        let surprises = rows::surprises(scorer, &mut Solo, &rows, &never, &mut |_, _| ()).unwrap();
        let greedy: Vec<_> = surprises.iter().map(|surprise| surprise.greedy).collect();
        assert_eq!(greedy, expected, "{batch} x {seq}");
    }
}

#[test]
fn a_loss_that_is_not_finite_names_line_and_choice() {
    let mut ops = cpu();
    let (mut model, mut losses) = tasks::model(&mut ops, Rows { batch: 2, seq: 64 });
    // From position 40 on: only the second line's second choice reaches so far. Which of its tokens fails
    // first is up to the blocks of the attention.
    let (width, context) = (model.config.channels, model.config.context);
    let mut positions = vec![0.0; width * context];
    let wpe = model.params.wpe.as_mut().unwrap();
    ops.download(wpe, &mut positions).unwrap();
    positions[40 * width..].fill(f32::NAN);
    ops.upload(wpe, &positions).unwrap();
    let short = r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}"#;
    let long = short.replace("\"c\"", "\"cccccccccccccccccccccccccccccc\"");
    let text = format!("{short}\n{long}");
    let set = QuestionSet::parse(Path::new("q"), text.as_bytes(), Benchmark::Piqa, &Tokenizer::Byte, 257, 64)
        .unwrap();
    let error = set.surprises(&mut ops, &mut model, &mut losses, &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("the loss of `q` line 2, completion 1, token "), "{error}");
}
