//! A matrix cut into units that are hashed one by one, so that parts of it can be shown to be its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::excerpt::{Pick, TILE_COLUMNS, TILE_ROWS};
use crate::proof::digest::LEAF_BYTES;

/// How a matrix is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridUnit {
    /// Tiles of [`TILE_ROWS`] by [`TILE_COLUMNS`], row by row; those at the ends are smaller. Its own bytes
    /// are row-major.
    Tile,
    /// The leaves of the state digest: 4096 bytes of the row-major matrix.
    Leaf,
}

/// A row-major matrix and its units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub rows: usize,
    pub columns: usize,
    /// Bytes of an element.
    pub element: usize,
    pub unit: GridUnit,
}

impl Grid {
    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        self.rows * self.columns * self.element
    }

    /// How many units there are.
    pub fn units(&self) -> usize {
        match self.unit {
            GridUnit::Tile => self.rows.div_ceil(TILE_ROWS) * self.across(),
            GridUnit::Leaf => self.bytes().div_ceil(LEAF_BYTES),
        }
    }

    fn across(&self) -> usize {
        self.columns.div_ceil(TILE_COLUMNS)
    }

    /// Bytes of a unit.
    pub fn unit_bytes(&self, unit: usize) -> usize {
        self.spans(unit).map(|bytes| bytes.len()).sum()
    }

    /// The bytes of a unit within the whole matrix.
    fn spans(&self, unit: usize) -> impl Iterator<Item = Range<usize>> {
        let (first, count, stride, len) = match self.unit {
            GridUnit::Tile => {
                let (row, column) = (unit / self.across() * TILE_ROWS, unit % self.across() * TILE_COLUMNS);
                let columns = TILE_COLUMNS.min(self.columns - column);
                let first = (row * self.columns + column) * self.element;
                let rows = TILE_ROWS.min(self.rows.saturating_sub(row));
                (first, rows, self.columns * self.element, columns * self.element)
            }
            GridUnit::Leaf => {
                let first = unit * LEAF_BYTES;
                (first, 1, 0, LEAF_BYTES.min(self.bytes().saturating_sub(first)))
            }
        };
        (0..count).map(move |row| first + row * stride..first + row * stride + len)
    }

    /// A unit of the matrix whose bytes these are.
    pub fn cut(&self, bytes: &[u8], unit: usize) -> Vec<u8> {
        let mut cut = Vec::with_capacity(self.unit_bytes(unit));
        self.spans(unit).for_each(|span| cut.extend_from_slice(&bytes[span]));
        cut
    }

    /// The elements of `pick` in its order, as runs of bytes within units; rows that the matrix does not have
    /// are left out.
    fn runs(&self, pick: &Pick, mut see: impl FnMut(usize, Range<usize>)) {
        let end = match self.unit {
            GridUnit::Tile => TILE_COLUMNS * self.element,
            GridUnit::Leaf => LEAF_BYTES,
        };
        for row in pick.rows.iter().cloned().flatten().filter(|row| *row < self.rows) {
            for columns in &pick.columns {
                let (mut at, last) = (columns.start * self.element, columns.end * self.element);
                while at < last {
                    let (unit, within) = match self.unit {
                        GridUnit::Tile => (row / TILE_ROWS * self.across() + at / end, at % end),
                        GridUnit::Leaf => {
                            let byte = row * self.columns * self.element + at;
                            (byte / end, byte % end)
                        }
                    };
                    let len = (last - at).min(end - within);
                    let skipped = match self.unit {
                        GridUnit::Tile => {
                            let width = (self.columns * self.element - at / end * end).min(end);
                            row % TILE_ROWS * width
                        }
                        GridUnit::Leaf => 0,
                    };
                    see(unit, skipped + within..skipped + within + len);
                    at += len;
                }
            }
        }
    }

    /// The units in which elements of `pick` lie.
    pub fn wanted(&self, pick: &Pick) -> BTreeSet<usize> {
        let mut wanted = BTreeSet::new();
        self.runs(pick, |unit, _| {
            wanted.insert(unit);
        });
        wanted
    }

    /// The bytes of the smaller matrix that `pick` makes, out of units that [`Grid::wanted`] names. Rows that
    /// the matrix does not have are the last and zero.
    ///
    /// # Panics
    /// A wanted unit is not there, or has another length.
    pub fn gather(&self, pick: &Pick, units: &BTreeMap<usize, Vec<u8>>) -> Vec<u8> {
        let [rows, columns] = pick.size();
        let mut gathered = Vec::with_capacity(rows * columns * self.element);
        self.runs(pick, |unit, bytes| gathered.extend_from_slice(&units[&unit][bytes]));
        gathered.resize(rows * columns * self.element, 0);
        gathered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_come_out_of_tiles_and_leaves_as_they_lie_in_the_matrix() {
        for (rows, columns, element) in [(70, 100, 4), (33, 64, 2), (1, 300, 2), (200, 1, 4), (45, 1000, 2)] {
            let bytes: Vec<u8> = (0..rows * columns * element).map(|i| (i * 31 % 251) as u8).collect();
            let pick = Pick {
                rows: vec![rows / 2..rows, 0..1, rows - 1..rows + 3],
                columns: vec![columns / 3..columns, 0..columns / 2],
                unfinished_rows: 0,
            };
            let mut expected = Vec::new();
            for row in pick.rows.iter().cloned().flatten() {
                for column in pick.columns.iter().cloned().flatten() {
                    let at = (row * columns + column) * element;
                    expected.extend((at..at + element).map(|i| if row < rows { bytes[i] } else { 0 }));
                }
            }
            for unit in [GridUnit::Tile, GridUnit::Leaf] {
                let grid = Grid { rows, columns, element, unit };
                let units: BTreeMap<usize, Vec<u8>> =
                    grid.wanted(&pick).into_iter().map(|unit| (unit, grid.cut(&bytes, unit))).collect();
                assert_eq!(grid.gather(&pick, &units), expected, "{grid:?}");
                let all: usize = (0..grid.units()).map(|unit| grid.unit_bytes(unit)).sum();
                assert_eq!(all, bytes.len(), "{grid:?}");
            }
        }
    }
}
