//! A server on 127.0.0.1 that serves files, with the faults that a test asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Requests before this one.
    pub number: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// First byte of the range that is asked for.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub cut_after: Option<usize>,
    /// Wait after this many bytes of the body.
    pub pause: Option<(usize, Duration)>,
    /// Send this many bytes at a time, with a pause between.
    pub drip: Option<(usize, Duration)>,
    /// Send no length: the body ends with the connection.
    pub no_length: bool,
}

impl Reply {
    pub fn new(status: u16, body: &[u8]) -> Reply {
        Reply { status, body: body.to_vec(), ..Reply::default() }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn redirect(to: &str) -> Reply {
        Reply::new(302, b"").header("location", to)
    }

    /// A file as a correct server sends it: whole, or from a byte on if `If-Range` names this version.
    pub fn file(asked: &Asked, bytes: &[u8], etag: &str) -> Reply {
        let same = asked.header("if-range").is_none_or(|version| version == etag);
        let reply = match asked.from().filter(|_| same) {
            Some(from) if from >= bytes.len() => Reply::new(416, b""),
            Some(from) => Reply::new(206, &bytes[from..])
                .header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
            None => Reply::new(200, bytes),
        };
        reply.header("etag", etag)
    }

    pub fn cut_after(self, bytes: usize) -> Reply {
        Reply { cut_after: Some(bytes), ..self }
    }
}

/// A running server. Its threads end with the process of the tests.
pub struct Server {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (asked.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                // A client that goes away is what some tests are about.
                std::thread::spawn(move || _ = serve(stream.unwrap(), &log, &*answer));
            }
        });
        Server { url, asked }
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &dyn Fn(&Asked) -> Reply,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let word = |at| line.split(' ').nth(at).unwrap_or("").to_owned();
    let (method, path) = (word(0), word(1));
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let asked = {
        let mut log = log.lock().unwrap();
        let asked = Asked { method, path, headers, number: log.len() };
        log.push(asked.clone());
        asked
    };
    let reply = answer(&asked);
    // The head of an answer alone, with the length that the body would have.
    let cut_after = if asked.method == "HEAD" { Some(0) } else { reply.cut_after };
    send(stream, &Reply { cut_after, ..reply })
}

fn send(mut stream: TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    let has_length = reply.headers.iter().any(|(name, _)| name == "content-length");
    if !has_length && !reply.no_length {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let body = &reply.body[..reply.cut_after.unwrap_or(reply.body.len()).min(reply.body.len())];
    if let Some((bytes, pause)) = reply.drip {
        for part in body.chunks(bytes) {
            stream.write_all(part)?;
            std::thread::sleep(pause);
        }
        return Ok(());
    }
    let first = reply.pause.map_or(body.len(), |(bytes, _)| bytes.min(body.len()));
    stream.write_all(&body[..first])?;
    if let Some((_, pause)) = reply.pause {
        stream.flush()?;
        std::thread::sleep(pause);
        stream.write_all(&body[first..])?;
    }
    stream.flush()
}
