//! Excerpts: a part of an operation's output, as an operation of the same kind on fewer rows, columns or
//! heads.
//!
//! That every element is summed in an order that the shape gives lets a small operation end in the bits that
//! a large one has in this place. How each operation is cut:
//!
//! | operation | an excerpt | reads |
//! |---|---|---|
//! | products | a tile of the output | its rows of one factor, its columns of the other |
//! | GELU, squared ReLU, SwiGLU, gradients | a tile of what is F wide | that tile, before SwiGLU a wider one
//! |
//! | weight gradient | a block of channels by channels, with the bias gradient | these columns of all rows |
//! | norms, embedding, classifier | a block of rows | these rows; of the classifier the whole table |
//! | the classifier's gradient of the table | some rows of it | these rows, all inputs and denominators |
//! | gradient of a norm | rows of `dx`, or columns of the weights | these rows, or columns of all rows |
//! | norm of queries and keys | one group of heads of a block of rows, of one sequence where it turns | that |
//! | its gradient | the same, or all queries or keys with the weight's gradient | that |
//! | rotary embedding | one group of heads of some positions of a sequence | that |
//! | attention and its gradient | one group of heads of one sequence | that group |
//! | gradient of the embedding | a token of the table, or some positions | the rows that are added there |
//! | where it sets the table | rows of tokens that do not occur, too | nothing |

use std::ops::Range;

use super::LinearShape;
use super::outline::{Matrix, Outline, QkNormPart, SequenceAngles, TableGradient};
use crate::ops::types::{Heads, Nonlinearity, Role, Rows, Write};

/// Rows and columns of a tile: excerpts begin at multiples of both.
pub const TILE_ROWS: usize = 32;
/// See [`TILE_ROWS`].
pub const TILE_COLUMNS: usize = 64;

/// Rows of the table in an excerpt of its gradient: a multiple of [`TILE_ROWS`].
const TABLE_ROWS: usize = 64;

/// Rows and columns of a matrix, each a list of ranges: the elements where they cross, in this order, make a
/// smaller matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    pub rows: Vec<Range<usize>>,
    pub columns: Vec<Range<usize>>,
    /// First rows of an output that the excerpt does not finish.
    pub unfinished_rows: usize,
}

impl Pick {
    /// Neighbouring rows and columns.
    pub fn new(rows: Range<usize>, columns: Range<usize>) -> Pick {
        Pick::listed(vec![rows], columns)
    }

    /// Rows in a list.
    fn listed(rows: Vec<Range<usize>>, columns: Range<usize>) -> Pick {
        Pick { rows, columns: vec![columns], unfinished_rows: 0 }
    }

    /// Rows and columns of the smaller matrix.
    pub fn size(&self) -> [usize; 2] {
        [&self.rows, &self.columns].map(|ranges| ranges.iter().map(ExactSizeIterator::len).sum())
    }

    /// Where in the whole matrix a row and a column of the smaller one are.
    pub fn place(&self, row: usize, column: usize) -> [usize; 2] {
        let nth = |ranges: &[Range<usize>], n| ranges.iter().cloned().flatten().nth(n).unwrap_or(n);
        [nth(&self.rows, row), nth(&self.columns, column)]
    }
}

/// A part of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Excerpt {
    /// The smaller operation.
    pub outline: Outline,
    /// For each of [`Outline::matrices`] what the smaller operation reads of it before, or has written
    /// afterwards, or both. None: it reads zeros, and what it writes there is not the whole's.
    pub picks: Vec<Option<Pick>>,
    /// The token ids that it reads.
    pub tokens: Vec<u16>,
}

/// Block `index` of `size` of `length` elements.
fn block(index: usize, size: usize, length: usize) -> Range<usize> {
    index * size..((index + 1) * size).min(length)
}

/// A tile of `rows` by `columns` by its number, row by row.
fn tile(index: usize, rows: usize, columns: usize) -> (Range<usize>, Range<usize>) {
    let across = columns.div_ceil(TILE_COLUMNS);
    (block(index / across, TILE_ROWS, rows), block(index % across, TILE_COLUMNS, columns))
}

fn tiles(rows: usize, columns: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * columns.div_ceil(TILE_COLUMNS)
}

impl Outline {
    /// How many excerpts the operation has.
    pub fn excerpts(&self) -> usize {
        let of_rows = |rows: usize| rows.div_ceil(TILE_ROWS);
        let of_columns = |columns: usize| columns.div_ceil(TILE_COLUMNS);
        match *self {
            // Blocks of positions of each sequence.
            Outline::Embedding { rows, .. } => rows.batch * of_rows(rows.seq),
            Outline::Layernorm { rows, .. } | Outline::ResidualLayernorm { rows, .. } => of_rows(rows),
            Outline::Classifier { rows, vocab, .. } => of_rows(rows) + vocab.padded.div_ceil(TABLE_ROWS),
            Outline::TableGradient(_) => 1,
            Outline::Linear { shape: s, .. } => tiles(s.rows, s.c_out),
            Outline::LinearActivate { shape: s, function, .. } => tiles(s.rows, function.outputs_of(s.c_out)),
            Outline::QkNorm { rows, heads, rotary, .. } => parts_of_norm(rows, heads, rotary),
            // Queries and keys as a whole come last.
            Outline::QkNormBackward { rows, heads, rotary, .. } => parts_of_norm(rows, heads, rotary) + 2,
            Outline::QkNormPart(_) => 1,
            Outline::Rotary { rows, heads, .. } => rows.batch * of_rows(rows.seq) * heads.kv_heads,
            Outline::Activate { rows, channels, .. } | Outline::ActivateBackward { rows, channels, .. } => {
                tiles(rows, channels)
            }
            Outline::Attention { rows, heads, .. } | Outline::AttentionBackward { rows, heads, .. } => {
                rows.batch * heads.kv_heads
            }
            Outline::LayernormBackward { rows, channels, .. } => of_rows(rows) + of_columns(channels),
            Outline::LinearBackwardInput { shape: s }
            | Outline::LinearBackwardInputActivate { shape: s, .. } => tiles(s.rows, s.c_in),
            Outline::LinearBackwardWeight { shape: s, .. } => of_columns(s.c_out) * of_columns(s.c_in),
            // The token of each row, and blocks of positions; rows of no token, which are set to zero.
            Outline::EmbeddingBackward { rows, vocab, dwte_write, dwpe_write, .. } => {
                let positions = if dwpe_write.is_some() { of_rows(rows.seq) } else { 0 };
                let cleared = if dwte_write == Write::Set { of_rows(vocab) } else { 0 };
                rows.count() + positions + cleared
            }
        }
    }

    /// The share of the operation's floating-point operations whose results excerpt `index` has.
    pub fn share(&self, index: usize) -> f64 {
        match *self {
            // Logits and the gradient of the input by rows, the gradient of the table by its own.
            Outline::Classifier { rows, .. } if index < rows.div_ceil(TILE_ROWS) => {
                2.0 / 3.0 / rows.div_ceil(TILE_ROWS) as f64
            }
            Outline::Classifier { vocab, .. } => 1.0 / 3.0 / vocab.padded.div_ceil(TABLE_ROWS) as f64,
            _ => 1.0 / self.excerpts() as f64,
        }
    }

    /// Excerpt `index` of [`Outline::excerpts`]; `tokens` are those that the whole operation reads.
    pub fn excerpt(&self, index: usize, tokens: &[u16]) -> Excerpt {
        match *self {
            Outline::Embedding { rows, channels, positions } => {
                embedding(index, rows, channels, positions, tokens)
            }
            Outline::Layernorm { rows, channels, rms, bias } => {
                let r = block(index, TILE_ROWS, rows);
                whole_rows(Outline::Layernorm { rows: r.len(), channels, rms, bias }, &r)
            }
            Outline::ResidualLayernorm { rows, channels, rms, bias } => {
                let r = block(index, TILE_ROWS, rows);
                whole_rows(Outline::ResidualLayernorm { rows: r.len(), channels, rms, bias }, &r)
            }
            Outline::Linear { shape, bias } => {
                let (rows, columns) = tile(index, shape.rows, shape.c_out);
                let [out, x, weight, of_bias] = forward(shape, &rows, &columns);
                let shape = LinearShape { rows: rows.len(), c_out: columns.len(), ..shape };
                let picks =
                    [Some(out), Some(x), Some(weight)].into_iter().chain(bias.then_some(Some(of_bias)));
                plain(Outline::Linear { shape, bias }, picks)
            }
            Outline::LinearActivate { shape, bias, function } => {
                let (rows, columns) = tile(index, shape.rows, function.outputs_of(shape.c_out));
                let [out, pre] = activation((rows.clone(), columns), function);
                let columns = pre.columns[0].clone();
                let [pre, x, weight, of_bias] = forward(shape, &rows, &columns);
                let shape = LinearShape { rows: rows.len(), c_out: columns.len(), ..shape };
                let picks = [out, pre, x, weight].into_iter().chain(bias.then_some(of_bias));
                plain(Outline::LinearActivate { shape, bias, function }, picks.map(Some))
            }
            Outline::Activate { rows, channels, function } => {
                let [out, pre] = activation(tile(index, rows, channels), function);
                let [rows, channels] = out.size();
                plain(Outline::Activate { rows, channels, function }, [out, pre].map(Some))
            }
            Outline::ActivateBackward { rows, channels, function, in_place } => {
                let [dout, pre] = activation(tile(index, rows, channels), function);
                let [rows, channels] = dout.size();
                let outline = Outline::ActivateBackward { rows, channels, function, in_place };
                let dout = (!in_place).then_some(dout);
                plain(outline, [pre.clone()].into_iter().chain(dout).chain([pre]).map(Some))
            }
            Outline::QkNorm { rows, heads, values, rotary } => {
                let (rows, rotary, [qkv, rstd, weight]) = of_norm(index, rows, heads, rotary);
                let heads = heads.one_group();
                let out = if values { qkv.clone() } else { without_values(&qkv) };
                let picks = [out, rstd, qkv, weight.clone(), weight].map(Some);
                plain(Outline::QkNorm { rows, heads, values, rotary }, picks)
            }
            Outline::QkNormBackward { rows, heads, write, rotary }
                if index < parts_of_norm(rows, heads, rotary) =>
            {
                let (rows, rotary, [qkv, rstd, weight]) = of_norm(index, rows, heads, rotary);
                let heads = heads.one_group();
                let reads = [qkv.clone(), weight.clone(), weight, rstd].map(Some);
                let picks = [Some(qkv), None, None].into_iter().chain(reads);
                plain(Outline::QkNormBackward { rows, heads, write, rotary }, picks)
            }
            Outline::QkNormBackward { rows, heads, write, rotary } => {
                let keys = index > parts_of_norm(rows, heads, rotary);
                let weights =
                    [false, true].map(|of| (of == keys).then(|| Pick::new(0..1, 0..heads.head_size)));
                let [q_weight, k_weight] = weights.clone();
                let [dq_weight, dk_weight] = weights;
                let outline = QkNormPart { rows, heads, write, rotary, keys };
                let first = if keys { heads.heads } else { 0 };
                let of =
                    |width: usize| Some(Pick::new(0..rows, first * width..(first + outline.count()) * width));
                let (qkv, rstd) = (of(heads.head_size), of(1));
                let picks = [qkv.clone(), dq_weight, dk_weight, qkv, q_weight, k_weight, rstd];
                plain(Outline::QkNormPart(outline), picks)
            }
            Outline::Rotary { rows, heads, theta, inverse, first } => {
                let (part, group) = (index / heads.kv_heads, index % heads.kv_heads);
                let (positions, start) = positions(part, rows.seq);
                let rows = Pick::new(start + positions.start..start + positions.end, 0..0);
                let pick = Pick { columns: of_group(heads, group).into(), ..rows };
                let (rows, heads) = (Rows { batch: 1, seq: positions.len() }, heads.one_group());
                let first = first + positions.start;
                plain(Outline::Rotary { rows, heads, theta, inverse, first }, [Some(pick)])
            }
            Outline::Attention { rows, heads, apart } => {
                let [qkv, out, lse] = group(index, rows, heads);
                let (rows, heads) = (Rows { batch: 1, seq: rows.seq }, heads.one_group());
                let read = if apart { without_values(&qkv) } else { qkv.clone() };
                let picks = [out, lse, read].into_iter().chain(apart.then_some(qkv)).map(Some);
                plain(Outline::Attention { rows, heads, apart }, picks)
            }
            Outline::AttentionBackward { rows, heads, apart } => {
                let [qkv, out, lse] = group(index, rows, heads);
                let (rows, heads) = (Rows { batch: 1, seq: rows.seq }, heads.one_group());
                let read = if apart { without_values(&qkv) } else { qkv.clone() };
                let picks = [qkv.clone(), out.clone(), read, out, lse];
                let picks = picks.into_iter().chain(apart.then_some(qkv)).map(Some);
                plain(Outline::AttentionBackward { rows, heads, apart }, picks)
            }
            Outline::Classifier { rows, channels, vocab, terms, scale, write }
                if index >= rows.div_ceil(TILE_ROWS) =>
            {
                let part = block(index - rows.div_ceil(TILE_ROWS), TABLE_ROWS, vocab.padded);
                let (first, count) = (part.start, part.len());
                let of = |rows| Some(Pick::new(rows, 0..channels));
                let denominators = Some(Pick::new(0..rows, 0..2));
                let picks = vec![None, denominators, None, of(part.clone()), of(0..rows), of(part)];
                let outline = TableGradient { rows, channels, vocab, terms, scale, write, first, count };
                Excerpt { outline: Outline::TableGradient(outline), picks, tokens: tokens.to_vec() }
            }
            Outline::TableGradient(_) | Outline::QkNormPart(_) => unreachable!("an excerpt is not cut again"),
            Outline::Classifier { rows, channels: c, vocab, terms, scale, write } => {
                let r = block(index, TILE_ROWS, rows);
                let of_rows = |columns| Some(Pick::new(r.clone(), 0..columns));
                let table = Some(Pick::new(0..vocab.padded, 0..c));
                let picks = [of_rows(1), of_rows(2), of_rows(c), None, of_rows(c), table];
                let outline = Outline::Classifier { rows: r.len(), channels: c, vocab, terms, scale, write };
                Excerpt { outline, picks: picks.into(), tokens: tokens[r].to_vec() }
            }
            Outline::LayernormBackward { .. } => self.layernorm_backward(index),
            Outline::LinearBackwardInput { shape } => {
                let (rows, columns) = tile(index, shape.rows, shape.c_in);
                let [dx, dout, weight] = backward_input(shape, &rows, &columns);
                let shape = LinearShape { rows: rows.len(), c_in: columns.len(), ..shape };
                plain(Outline::LinearBackwardInput { shape }, [dx, dout, weight].map(Some))
            }
            Outline::LinearBackwardInputActivate { shape, function, again } => {
                let (rows, columns) = tile(index, shape.rows, shape.c_in);
                let [_, dout, weight] = backward_input(shape, &rows, &columns);
                let shape = LinearShape { rows: rows.len(), c_in: columns.len(), ..shape };
                let [out, pre] = activation((rows, columns), function);
                let picks = [pre.clone(), dout, weight, pre].into_iter().chain(again.then_some(out));
                plain(Outline::LinearBackwardInputActivate { shape, function, again }, picks.map(Some))
            }
            Outline::LinearBackwardWeight { shape, bias, write, order } => {
                let across = shape.c_in.div_ceil(TILE_COLUMNS);
                let outs = block(index / across, TILE_COLUMNS, shape.c_out);
                let ins = block(index % across, TILE_COLUMNS, shape.c_in);
                let of_bias = bias.then(|| Some(Pick::new(0..1, outs.clone())));
                let of_all = |columns: &Range<usize>| Some(Pick::new(0..shape.rows, columns.clone()));
                let picks = [Some(Pick::new(outs.clone(), ins.clone()))].into_iter().chain(of_bias);
                let picks = picks.chain([of_all(&outs), of_all(&ins)]);
                let shape = LinearShape { c_in: ins.len(), c_out: outs.len(), ..shape };
                plain(Outline::LinearBackwardWeight { shape, bias, write, order }, picks)
            }
            Outline::EmbeddingBackward { rows, .. } if index < rows.count() => {
                self.of_token(tokens[index], tokens)
            }
            Outline::EmbeddingBackward { rows, dwpe_write, .. }
                if dwpe_write.is_none() || index >= rows.count() + rows.seq.div_ceil(TILE_ROWS) =>
            {
                let positions = dwpe_write.map_or(0, |_| rows.seq.div_ceil(TILE_ROWS));
                self.of_no_token(index - rows.count() - positions, tokens)
            }
            Outline::EmbeddingBackward { rows, channels: c, dwte_write, dwpe_write, .. } => {
                let positions = block(index - rows.count(), TILE_ROWS, rows.seq);
                let sequence = |b: usize| b * rows.seq + positions.start..b * rows.seq + positions.end;
                let small = Rows { batch: rows.batch, seq: positions.len() };
                let dout = Pick::listed((0..rows.batch).map(sequence).collect(), 0..c);
                let picks = vec![None, Some(Pick::new(positions, 0..c)), Some(dout)];
                let outline =
                    Outline::EmbeddingBackward { rows: small, channels: c, vocab: 1, dwte_write, dwpe_write };
                Excerpt { outline, picks, tokens: vec![0; small.count()] }
            }
        }
    }

    /// Rows of `dx`, or columns of the gradients of the weights, which need no more of the row than its mean
    /// and deviation.
    fn layernorm_backward(&self, index: usize) -> Excerpt {
        let Outline::LayernormBackward { rows, channels, rms, bias, dx_write, write, again } = *self else {
            unreachable!("only called for this operation")
        };
        let row_blocks = rows.div_ceil(TILE_ROWS);
        let of_rows = index < row_blocks;
        let (r, c) = match of_rows {
            true => (block(index, TILE_ROWS, rows), 0..channels),
            false => (0..rows, block(index - row_blocks, TILE_COLUMNS, channels)),
        };
        let (n, columns) = (r.len(), c.len());
        let outline =
            Outline::LayernormBackward { rows: n, channels: columns, rms, bias, dx_write, write, again };
        let wide = Pick::new(r.clone(), c.clone());
        let (vector, statistic) = (Pick::new(0..1, c), Pick::new(r, 0..1));
        let [dx, weights] = match of_rows {
            true => [Some(wide.clone()), None],
            false => [None, Some(vector.clone())],
        };
        let out = again.then(|| dx.clone());
        let of_out = (again && bias).then(|| Some(vector.clone()));
        let written = [dx, weights.clone()].into_iter().chain(bias.then_some(weights));
        let mean = (!rms).then(|| statistic.clone());
        let reads = [wide.clone(), wide, vector].into_iter().chain(mean).chain([statistic]);
        plain(outline, written.chain(reads.map(Some)).chain(out).chain(of_out))
    }

    /// The gradient of one token's row. Rows are added in pieces of 32 of the list that is sorted by token,
    /// so the excerpt begins with those of other tokens that share the first piece.
    fn of_token(&self, token: u16, tokens: &[u16]) -> Excerpt {
        const PIECE: usize = 32;
        let Outline::EmbeddingBackward { channels, dwte_write, dwpe_write, .. } = *self else {
            unreachable!("only called for this operation")
        };
        let mut sorted: Vec<usize> = (0..tokens.len()).collect();
        sorted.sort_by_key(|position| tokens[*position]);
        let first = sorted.partition_point(|position| tokens[*position] < token);
        let end = sorted.partition_point(|position| tokens[*position] <= token);
        let listed = &sorted[first / PIECE * PIECE..end];
        let others = first % PIECE > 0;
        let row = usize::from(token)..usize::from(token) + 1;
        let vocab = 1 + usize::from(others);
        let rows = vec![row; vocab];
        let dwte = Pick { unfinished_rows: usize::from(others), ..Pick::listed(rows, 0..channels) };
        let dout = Pick::listed(listed.iter().map(|position| *position..position + 1).collect(), 0..channels);
        let rows = Rows { batch: 1, seq: listed.len() };
        let number = |position: &usize| u16::from(others && tokens[*position] == token);
        Excerpt {
            outline: Outline::EmbeddingBackward { rows, channels, vocab, dwte_write, dwpe_write },
            picks: [Some(dwte)].into_iter().chain(dwpe_write.map(|_| None)).chain([Some(dout)]).collect(),
            tokens: listed.iter().map(number).collect(),
        }
    }

    /// Those of a block of rows of the table whose tokens do not occur: zeros. Where all occur, the gradient
    /// of the first one.
    fn of_no_token(&self, index: usize, tokens: &[u16]) -> Excerpt {
        let Outline::EmbeddingBackward { channels, vocab, dwte_write, dwpe_write, .. } = *self else {
            unreachable!("only called for this operation")
        };
        let Range { start: first, end } = block(index, TILE_ROWS, vocab);
        let mut absent = vec![true; end - first];
        for token in tokens {
            if let Some(absent) = usize::from(*token).checked_sub(first).and_then(|at| absent.get_mut(at)) {
                *absent = false;
            }
        }
        let rows: Vec<_> = (first..).zip(absent).filter(|(_, absent)| *absent).collect();
        if rows.is_empty() {
            return self.of_token(first as u16, tokens);
        }
        let (none, vocab) = (Rows { batch: 1, seq: 0 }, rows.len());
        let rows = rows.into_iter().map(|(row, _)| row..row + 1).collect();
        let outline = Outline::EmbeddingBackward { rows: none, channels, vocab, dwte_write, dwpe_write };
        let others = dwpe_write.map(|_| None).into_iter().chain([None]);
        plain(outline, [Some(Pick::listed(rows, 0..channels))].into_iter().chain(others))
    }
}

fn plain(outline: Outline, picks: impl IntoIterator<Item = Option<Pick>>) -> Excerpt {
    Excerpt { outline, picks: picks.into_iter().collect(), tokens: Vec::new() }
}

/// An excerpt of these whole rows: of vectors of parameters all, of other matrices these.
fn whole_rows(outline: Outline, rows: &Range<usize>) -> Excerpt {
    let pick = |matrix: Matrix| {
        let rows = if matrix.role == Role::Param { 0..matrix.rows } else { rows.clone() };
        Some(Pick::new(rows, 0..matrix.columns))
    };
    let picks: Vec<_> = outline.matrices().into_iter().map(pick).collect();
    plain(outline, picks)
}

/// Output, input, weight and bias of a tile of a linear layer.
fn forward(shape: LinearShape, rows: &Range<usize>, columns: &Range<usize>) -> [Pick; 4] {
    [
        Pick::new(rows.clone(), columns.clone()),
        Pick::new(rows.clone(), 0..shape.c_in),
        Pick::new(columns.clone(), 0..shape.c_in),
        Pick::new(0..1, columns.clone()),
    ]
}

/// A tile after a function and what it is made of before.
fn activation((rows, columns): (Range<usize>, Range<usize>), function: Nonlinearity) -> [Pick; 2] {
    let wide = function.inputs() * columns.start..function.inputs() * columns.end;
    [Pick::new(rows.clone(), columns), Pick::new(rows, wide)]
}

/// Output, gradient and weight of a tile of an input gradient.
fn backward_input(shape: LinearShape, rows: &Range<usize>, columns: &Range<usize>) -> [Pick; 3] {
    [
        Pick::new(rows.clone(), columns.clone()),
        Pick::new(rows.clone(), 0..shape.c_out),
        Pick::new(0..shape.c_out, columns.clone()),
    ]
}

/// Queries, keys and values, outputs, and sums of one group of heads of one sequence.
fn group(index: usize, rows: Rows, heads: Heads) -> [Pick; 3] {
    let (sequence, group) = (index / heads.kv_heads, index % heads.kv_heads);
    let tokens = sequence * rows.seq..(sequence + 1) * rows.seq;
    let columns = of_group(heads, group);
    let (output, sums) = (columns[0].clone(), heads.sharing() * rows.seq);
    [
        Pick { rows: vec![tokens.clone()], columns: columns.into(), unfinished_rows: 0 },
        Pick::new(tokens, output),
        Pick::new(index * sums..(index + 1) * sums, 0..1),
    ]
}

/// Of a group's queries, keys and values the former two, which lie in the same places where there are no
/// values.
fn without_values(qkv: &Pick) -> Pick {
    Pick { columns: qkv.columns[..2].to_vec(), ..qkv.clone() }
}

/// Block `part` of those that all sequences have: its positions, and the row of the sequence's first.
fn positions(part: usize, seq: usize) -> (Range<usize>, usize) {
    let blocks = seq.div_ceil(TILE_ROWS);
    (block(part % blocks, TILE_ROWS, seq), part / blocks * seq)
}

/// How many blocks of one group of heads a norm of queries and keys has: of all rows, with rotary positions
/// of each sequence.
fn parts_of_norm(rows: usize, heads: Heads, rotary: Option<SequenceAngles>) -> usize {
    let blocks = match rotary {
        Some(SequenceAngles { seq, .. }) => rows / seq * seq.div_ceil(TILE_ROWS),
        None => rows.div_ceil(TILE_ROWS),
    };
    blocks * heads.kv_heads
}

/// Of one group of heads of a block of rows, how many rows, their positions, and its queries, keys and
/// values, their deviations, and a weight.
fn of_norm(
    index: usize,
    rows: usize,
    heads: Heads,
    rotary: Option<SequenceAngles>,
) -> (usize, Option<SequenceAngles>, [Pick; 3]) {
    let (part, group) = (index / heads.kv_heads, index % heads.kv_heads);
    let (places, start) = positions(part, rotary.map_or(rows, |angles| angles.seq));
    let rotary = rotary.map(|angles| SequenceAngles {
        seq: places.len(),
        first: angles.first + places.start,
        ..angles
    });
    let rows = start + places.start..start + places.end;
    let key = heads.heads + group;
    let columns = [group * heads.sharing()..(group + 1) * heads.sharing(), key..key + 1];
    let of_rows = || Pick::new(rows.clone(), 0..0);
    let picks = [
        Pick { columns: of_group(heads, group).into(), ..of_rows() },
        Pick { columns: columns.into(), ..of_rows() },
        Pick::new(0..1, 0..heads.head_size),
    ];
    (rows.len(), rotary, picks)
}

/// The columns of a group's queries, keys and values.
fn of_group(heads: Heads, group: usize) -> [Range<usize>; 3] {
    let of = |first: usize, count: usize| first * heads.head_size..(first + count) * heads.head_size;
    let key = heads.heads + group;
    [of(group * heads.sharing(), heads.sharing()), of(key, 1), of(key + heads.kv_heads, 1)]
}

/// Positions of one sequence; of the table the rows of their tokens, each once.
fn embedding(index: usize, rows: Rows, channels: usize, positions: bool, tokens: &[u16]) -> Excerpt {
    let blocks = rows.seq.div_ceil(TILE_ROWS);
    let places = block(index % blocks, TILE_ROWS, rows.seq);
    let first = index / blocks * rows.seq;
    let of_rows = first + places.start..first + places.end;
    let mut distinct = tokens[of_rows.clone()].to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let number = |token: &u16| distinct.partition_point(|other| other < token) as u16;
    let numbers = tokens[of_rows.clone()].iter().map(number).collect();
    let table = Pick::listed(
        distinct.iter().map(|token| usize::from(*token)..usize::from(*token) + 1).collect(),
        0..channels,
    );
    let outline = Outline::Embedding { rows: Rows { batch: 1, seq: places.len() }, channels, positions };
    let wpe = positions.then(|| Pick::new(places, 0..channels));
    let picks = [Pick::new(of_rows, 0..channels), table].into_iter().chain(wpe).map(Some);
    Excerpt { outline, picks: picks.collect(), tokens: numbers }
}
