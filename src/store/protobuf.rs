//! Protocol buffers, written by hand: the kinds of field that event files and other trackers' records have.
//!
//! A field is its number and wire type, then its value: a varint, eight bytes, four bytes, or a length and so
//! many bytes. Fields stand in the order in which they are added.

/// A protocol buffer being built.
#[derive(Clone, Debug, Default)]
pub struct ProtoMessage {
    pub bytes: Vec<u8>,
}

impl ProtoMessage {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Field number and wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
    fn key(&mut self, field: u64, wire: u64) {
        self.raw_varint(field << 3 | wire);
    }

    pub fn varint(&mut self, field: u64, value: u64) -> &mut ProtoMessage {
        self.key(field, 0);
        self.raw_varint(value);
        self
    }

    pub fn double(&mut self, field: u64, value: f64) -> &mut ProtoMessage {
        self.key(field, 1);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub fn float(&mut self, field: u64, value: f32) -> &mut ProtoMessage {
        self.key(field, 5);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub fn delimited(&mut self, field: u64, bytes: &[u8]) -> &mut ProtoMessage {
        self.key(field, 2);
        self.raw_varint(bytes.len() as u64);
        self.bytes.extend(bytes);
        self
    }

    pub fn string(&mut self, field: u64, text: &str) -> &mut ProtoMessage {
        self.delimited(field, text.as_bytes())
    }

    pub fn message(&mut self, field: u64, message: &ProtoMessage) -> &mut ProtoMessage {
        self.delimited(field, &message.bytes)
    }
}
