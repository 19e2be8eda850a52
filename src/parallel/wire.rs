//! Frames on a TCP connection between two ranks, and the greeting with which it starts.
//!
//! Every frame names the operation and the step it belongs to. Integers are little-endian. A greeting says
//! which rank of which run calls. Before it both ends have shown that they are of this program and know the
//! run's key ([`super::handshake`]).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::error::Loss;

/// The longest text in a frame or greeting; a longer one is refused.
const MAX_TEXT: u32 = 1 << 16;

/// The content of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// One side of a swap.
    Data(Vec<u8>),
    /// A heartbeat: the rank that is waited for, if any, and the number of operations done so far.
    Beat { waiting: Option<u32>, progress: u64 },
    /// This rank stops, because that rank failed.
    Abort { rank: u32, host: String, why: Loss },
    /// This rank is done.
    Bye,
}

/// A message between ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub operation: String,
    pub step: u64,
    pub body: Body,
}

impl Frame {
    /// Writes the frame; large data is not copied.
    pub fn write(operation: &str, step: u64, body: &Body, out: &mut impl Write) -> io::Result<()> {
        let mut payload = Vec::new();
        let (kind, payload) = match body {
            Body::Data(bytes) => (0, bytes),
            Body::Beat { waiting, progress } => {
                payload.extend_from_slice(&waiting.unwrap_or(u32::MAX).to_le_bytes());
                payload.extend_from_slice(&progress.to_le_bytes());
                (1, &payload)
            }
            Body::Abort { rank, host, why } => {
                payload.extend_from_slice(&rank.to_le_bytes());
                put_text(&mut payload, host);
                put_text(&mut payload, &why.why);
                payload.push(u8::from(why.hangs));
                (2, &payload)
            }
            Body::Bye => (3, &payload),
        };
        let mut head = vec![kind];
        head.extend_from_slice(&step.to_le_bytes());
        put_text(&mut head, operation);
        head.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        out.write_all(&head)?;
        out.write_all(payload)?;
        out.flush()
    }

    /// Reads a frame; the end of the stream is an error like any other.
    pub fn read(input: &mut impl Read) -> io::Result<Frame> {
        let kind = take::<1>(input)?[0];
        let step = u64::from_le_bytes(take(input)?);
        let operation = take_text(input)?;
        let length = u64::from_le_bytes(take(input)?);
        let body = match kind {
            0 => {
                // Grows with what is received: a wrong length alone takes no memory.
                let mut bytes = Vec::new();
                input.take(length).read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Body::Data(bytes)
            }
            1 => {
                let waiting = u32::from_le_bytes(take(input)?);
                Body::Beat {
                    waiting: (waiting != u32::MAX).then_some(waiting),
                    progress: u64::from_le_bytes(take(input)?),
                }
            }
            2 => Body::Abort {
                rank: u32::from_le_bytes(take(input)?),
                host: take_text(input)?,
                why: Loss { why: take_text(input)?, hangs: take::<1>(input)?[0] != 0 },
            },
            3 => Body::Bye,
            other => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of kind {other}")));
            }
        };
        Ok(Frame { operation, step, body })
    }
}

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Registers a rank and its address with rank 0.
    Register,
    /// Carries frames between two ranks.
    Connection,
}

/// The first message on a connection after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub purpose: Purpose,
    /// Names the run and the attempt; a caller with another one is refused.
    pub run: String,
    /// A hash of the settings that all ranks must have been started with.
    pub job: String,
    pub rank: u32,
    pub size: u32,
    pub host: String,
    /// Where this rank listens.
    pub port: u16,
}

impl Greeting {
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        bytes.push(u8::from(self.purpose == Purpose::Connection));
        bytes.extend_from_slice(&self.rank.to_le_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.port.to_le_bytes());
        for text in [&self.run, &self.job, &self.host] {
            put_text(&mut bytes, text);
        }
        out.write_all(&bytes)?;
        out.flush()
    }

    pub fn read(input: &mut impl Read) -> io::Result<Greeting> {
        let purpose = if take::<1>(input)?[0] == 0 { Purpose::Register } else { Purpose::Connection };
        let rank = u32::from_le_bytes(take(input)?);
        let size = u32::from_le_bytes(take(input)?);
        let port = u16::from_le_bytes(take(input)?);
        let [run, job, host] = [take_text(input)?, take_text(input)?, take_text(input)?];
        Ok(Greeting { purpose, run, job, rank, size, host, port })
    }
}

/// Rank 0's answer to a registration: the addresses of all ranks, or why there are none.
pub type RegistrationAnswer = Result<Vec<(String, String)>, String>;

/// Writes host and address of each rank, or the refusal.
pub fn write_answer(answer: &RegistrationAnswer, out: &mut impl Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    match answer {
        Ok(ranks) => {
            bytes.extend_from_slice(&(ranks.len() as u32).to_le_bytes());
            for (host, address) in ranks {
                put_text(&mut bytes, host);
                put_text(&mut bytes, address);
            }
        }
        Err(why) => {
            bytes.extend_from_slice(&0u32.to_le_bytes());
            put_text(&mut bytes, why);
        }
    }
    out.write_all(&bytes)?;
    out.flush()
}

pub fn read_answer(input: &mut impl Read) -> io::Result<RegistrationAnswer> {
    match u32::from_le_bytes(take(input)?) {
        0 => Ok(Err(take_text(input)?)),
        count if count <= MAX_TEXT => {
            (0..count).map(|_| Ok((take_text(input)?, take_text(input)?))).collect::<io::Result<_>>().map(Ok)
        }
        count => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{count} ranks"))),
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    // Host names, operations and reasons are short; a longer text is cut.
    let text = &text.as_bytes()[..text.len().min(MAX_TEXT as usize)];
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text);
}

fn take<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take_text(input: &mut impl Read) -> io::Result<String> {
    let length = u32::from_le_bytes(take(input)?);
    if length > MAX_TEXT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a text of {length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A connection up to a deadline, which who sends or takes a byte now and then does not move.
pub struct Until<'a> {
    pub stream: &'a TcpStream,
    pub deadline: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(into)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_greetings_and_answers_read_back() {
        let bodies = [
            Body::Data(vec![1, 2, 3]),
            Body::Data(vec![]),
            Body::Beat { waiting: None, progress: 7 },
            Body::Beat { waiting: Some(3), progress: u64::MAX },
            Body::Abort { rank: 5, host: "node-é".into(), why: Loss::hangs("is gone".into()) },
            Body::Bye,
        ];
        let mut stream = Vec::new();
        for body in &bodies {
            Frame::write("the sum of gradients", 12, body, &mut stream).expect("memory takes it");
        }
        let mut input = stream.as_slice();
        for body in bodies {
            let frame = Frame::read(&mut input).expect("a frame");
            assert_eq!(frame, Frame { operation: "the sum of gradients".into(), step: 12, body });
        }
        assert!(Frame::read(&mut input).is_err(), "the end is an error");

        let greeting = Greeting {
            purpose: Purpose::Connection,
            run: "r".into(),
            job: "j".into(),
            rank: 1,
            size: 2,
            host: "h".into(),
            port: 99,
        };
        let mut bytes = Vec::new();
        greeting.write(&mut bytes).expect("memory takes it");
        assert_eq!(Greeting::read(&mut bytes.as_slice()).expect("a greeting"), greeting);
        for answer in [Ok(vec![("h".to_owned(), "127.0.0.1:1".to_owned())]), Err("no".to_owned())] {
            let mut bytes = Vec::new();
            write_answer(&answer, &mut bytes).expect("memory takes it");
            assert_eq!(read_answer(&mut bytes.as_slice()).expect("an answer"), answer);
        }
    }

    #[test]
    fn bytes_of_other_programs_are_no_greeting_and_lengths_alone_take_no_memory() {
        let web = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert!(Greeting::read(&mut web.as_slice()).is_err());
        assert!(read_answer(&mut web.as_slice()).is_err());
        let mut data = vec![0];
        data.extend_from_slice(&[0; 8]);
        data.extend_from_slice(&[0; 4]);
        data.extend_from_slice(&u64::MAX.to_le_bytes());
        data.extend_from_slice(b"short");
        assert!(Frame::read(&mut data.as_slice()).is_err());
    }
}
