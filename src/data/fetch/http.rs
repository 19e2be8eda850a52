//! One request for the bytes of a file, from some byte on.
//!
//! Redirects are followed here and not by the library: the hub gives the digest, the length and the commit of
//! a file in the redirect itself, and the token of the hub must not travel to another host.

use std::time::Duration;

use ureq::http::{HeaderMap, Method, Uri};
use ureq::{Agent, Body};

use super::catalogue::Host;
use super::error::FetchError;

/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 10;

/// Where the servers are.
#[derive(Clone)]
pub struct Endpoints {
    hugging_face: String,
    github_raw: String,
    /// Sent only to `hugging_face`.
    token: Option<String>,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("Endpoints")
            .field("hugging_face", &self.hugging_face)
            .field("github_raw", &self.github_raw)
            .field("token", &token)
            .finish()
    }
}

impl Endpoints {
    /// `HF_ENDPOINT`, `GITHUB_RAW_ENDPOINT` and `HF_TOKEN`, as `variable` gives them; unset or empty is the
    /// default.
    ///
    /// # Errors
    ///
    /// An endpoint that is no `http` or `https` address.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Endpoints, FetchError> {
        let set =
            |name| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let endpoint = |name: &'static str, default: &str| {
            let value = set(name).unwrap_or_else(|| default.to_owned());
            let uri = value.parse::<Uri>().ok();
            match uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
            {
                Some(_) => Ok(value.trim_end_matches('/').to_owned()),
                None => Err(FetchError::Endpoint { variable: name, value }),
            }
        };
        Ok(Endpoints {
            hugging_face: endpoint("HF_ENDPOINT", "https://huggingface.co")?,
            github_raw: endpoint("GITHUB_RAW_ENDPOINT", "https://raw.githubusercontent.com")?,
            token: set("HF_TOKEN"),
        })
    }

    /// The address of a file.
    pub fn url(&self, (host, repository): (Host, &str), revision: &str, path: &str) -> String {
        match host {
            Host::HuggingFace => {
                format!("{}/datasets/{repository}/resolve/{revision}/{path}", self.hugging_face)
            }
            Host::GitHub => format!("{}/{repository}/{revision}/{path}", self.github_raw),
        }
    }
}

/// Timeouts and retries.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the next bytes; a connection that delivers less than [`Patience::stall_bytes`] in this time
    /// stalls.
    pub stall: Duration,
    pub stall_bytes: u64,
    /// Attempts in a row that bring less than [`Patience::progress_bytes`] before giving up.
    pub attempts: u32,
    pub progress_bytes: u64,
    /// Before the second attempt; doubled before each further one, up to [`Patience::longest_wait`].
    pub first_wait: Duration,
    pub longest_wait: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            stall_bytes: 30 << 10,
            attempts: 6,
            progress_bytes: 1 << 20,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// What identifies a version of a file, for resuming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResumePoint {
    pub from: u64,
    /// A strong ETag or a date, for `If-Range`.
    pub validator: Option<String>,
}

/// An answer, its body not read yet.
#[derive(Debug)]
pub(super) struct HttpAnswer {
    pub url: String,
    pub status: u16,
    pub facts: AnswerHeaders,
    pub body: Body,
}

/// The headers of an answer and of the redirects before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AnswerHeaders {
    /// Bytes of this body.
    pub body_bytes: Option<u64>,
    /// First byte and length of the whole file, of a `Content-Range`.
    pub range: Option<(u64, u64)>,
    /// The `Content-Range` as it stands.
    pub range_text: String,
    /// A strong ETag, else the date of the last change.
    pub validator: Option<String>,
    pub is_html: bool,
    pub encoding: Option<String>,
    pub retry_after_s: Option<u64>,
    /// What the hub publishes of the file: SHA-256 in hex, length, and the commit of the revision.
    pub hub_sha256: Option<String>,
    pub hub_bytes: Option<u64>,
    pub hub_commit: Option<String>,
}

/// A client for requests to the servers.
#[derive(Clone, Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoints: Endpoints,
    patience: Patience,
}

impl Client {
    pub fn new(endpoints: Endpoints, patience: Patience) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("runner/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_per_read(Some(patience.stall))
            .timeout_per_write(Some(patience.stall));
        // A server on this machine is not behind a proxy.
        let local =
            [&endpoints.hugging_face, &endpoints.github_raw].iter().any(|endpoint| is_loopback(endpoint));
        let config = if local { config.proxy(None) } else { config };
        Client { agent: config.build().new_agent(), endpoints, patience }
    }

    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Aborts every request under way, and all later ones.
    pub fn shutdown(&self) {
        self.agent.clone().shutdown();
    }

    /// Requests a file, or what follows the bytes present already. Any status is returned as an answer.
    pub fn get(&self, url: &str, resume: Option<&ResumePoint>) -> Result<HttpAnswer, FetchError> {
        let mut url = url.to_owned();
        let mut facts = AnswerHeaders::default();
        for _ in 0..=MAX_REDIRECTS {
            let response =
                self.once(Method::GET, &url, resume).map_err(|error| self.connection(&url, &error))?;
            let status = response.status().as_u16();
            let headers = response.headers();
            facts.read(headers, self.is_hub(&url));
            let location = headers.get("location").and_then(|value| value.to_str().ok());
            match location.filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308)) {
                Some(location) => url = redirected(&url, location)?,
                None => return Ok(HttpAnswer { url, status, facts, body: response.into_body() }),
            }
        }
        Err(FetchError::Redirect { to: url.clone(), url, why: "ten redirects did not lead to a file" })
    }

    /// The commit of a file's revision as the hub gives it; none where a server gives none.
    ///
    /// The hub's own answer has it. The server that it redirects to may refuse such a request.
    pub fn commit(&self, url: &str) -> Result<Option<String>, FetchError> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response =
                self.once(Method::HEAD, &url, None).map_err(|error| self.connection(&url, &error))?;
            let (status, headers) = (response.status().as_u16(), response.headers());
            let mut facts = AnswerHeaders::default();
            facts.read(headers, self.is_hub(&url));
            let location = headers.get("location").and_then(|value| value.to_str().ok());
            match (facts.hub_commit, location) {
                (Some(commit), _) => return Ok(Some(commit)),
                // The data set was renamed.
                (None, Some(location)) if status < 400 && self.is_hub(&redirected(&url, location)?) => {
                    url = redirected(&url, location)?;
                }
                // A mirror that refuses such a request has no commits either. If the file is really missing
                // or private, the request for the file itself reports it.
                _ if status < 500 && !matches!(status, 408 | 429) || status == 501 => return Ok(None),
                _ => return Err(FetchError::status(&url, status, facts.retry_after_s)),
            }
        }
        Ok(None)
    }

    fn once(
        &self,
        method: Method,
        url: &str,
        resume: Option<&ResumePoint>,
    ) -> Result<ureq::http::Response<Body>, ureq::Error> {
        // Compressed, the lengths and ranges of a file would be other ones.
        let mut request =
            ureq::http::Request::builder().method(method).uri(url).header("accept-encoding", "identity");
        if let Some(token) = self.endpoints.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(ResumePoint { from, validator }) = resume {
            request = request.header("range", format!("bytes={from}-"));
            if let Some(validator) = validator {
                request = request.header("if-range", validator);
            }
        }
        self.agent.run(request.body(())?)
    }

    /// Whether an address is on the hub's own server: scheme, host and port.
    fn is_hub(&self, url: &str) -> bool {
        origin(url).is_some_and(|asked| Some(asked) == origin(&self.endpoints.hugging_face))
    }

    /// Converts an error of the library, before or in an answer.
    pub fn connection(&self, url: &str, error: &ureq::Error) -> FetchError {
        let of_github = !self.is_hub(url) && origin(url) == origin(&self.endpoints.github_raw);
        let hint = match of_github {
            true => "is the network up? a proxy is named by `HTTPS_PROXY`, a mirror by `GITHUB_RAW_ENDPOINT`",
            false => "is the network up? a proxy is named by `HTTPS_PROXY`, a mirror by `HF_ENDPOINT`",
        };
        let url = url.to_owned();
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => FetchError::Connection {
                url,
                reason: format!("no connection within {} s", self.patience.connect.as_secs()),
                hint,
            },
            ureq::Error::Timeout(_) => {
                FetchError::Stalled { url, seconds: self.patience.stall.as_secs(), received: 0, got_bytes: 0 }
            }
            ureq::Error::HostNotFound => {
                FetchError::Connection { url, reason: "no such host".to_owned(), hint }
            }
            error => FetchError::Connection { url, reason: error.to_string(), hint },
        }
    }
}

impl AnswerHeaders {
    /// Adds the headers of one hop. The hub's facts about the file are kept; the rest is the last hop's.
    fn read(&mut self, headers: &HeaderMap, from_hub: bool) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok());
        if from_hub {
            // A file that the hub holds itself has no linked ETag, and one that is no SHA-256.
            let etag = text("x-linked-etag").or_else(|| text("etag")).map(unquoted);
            let sha256 = etag.filter(|etag| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit()));
            self.hub_sha256 = sha256.map(str::to_ascii_lowercase).or(self.hub_sha256.take());
            self.hub_bytes = number("x-linked-size").or(self.hub_bytes);
            let commit = text("x-repo-commit").filter(|commit| is_commit(commit));
            self.hub_commit = commit.map(str::to_owned).or(self.hub_commit.take());
        }
        self.body_bytes = number("content-length");
        self.range_text = text("content-range").unwrap_or_default().to_owned();
        self.range = parse_range(&self.range_text);
        let strong = text("etag").filter(|etag| etag.starts_with('"'));
        self.validator = strong.or_else(|| text("last-modified")).map(str::to_owned);
        self.is_html =
            text("content-type").is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/html"));
        self.encoding =
            text("content-encoding").filter(|e| !e.eq_ignore_ascii_case("identity")).map(str::to_owned);
        self.retry_after_s = number("retry-after");
    }
}

/// Whether a revision is a whole commit, which no push can change.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

fn unquoted(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

/// First byte and length of `bytes 5-9/10`.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

fn is_loopback(url: &str) -> bool {
    origin(url).is_some_and(|(_, host, _)| host == "localhost" || host.starts_with("127.") || host == "[::1]")
}

/// Where a redirect leads, seen from `url`.
fn redirected(url: &str, location: &str) -> Result<String, FetchError> {
    let refused = |why| FetchError::Redirect { url: url.to_owned(), to: location.to_owned(), why };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| refused("it is no address"))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let to = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let folder = path.rfind('/').map_or("/", |at| &path[..=at]);
        format!("{scheme}://{authority}{folder}{location}")
    };
    match origin(&to) {
        Some((to_scheme, ..)) if scheme.eq_ignore_ascii_case("https") && to_scheme != "https" => {
            Err(refused("from an encrypted connection to a plain one, on which the file could be changed"))
        }
        Some((to_scheme, ..)) if matches!(to_scheme.as_str(), "http" | "https") => Ok(to),
        _ => Err(refused("it is no `http` or `https` address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_come_from_variables_and_must_be_addresses() {
        let of = |pairs: &'static [(&str, &str)]| {
            Endpoints::from_variables(|name| {
                pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
            })
        };
        let url = |endpoints: &Endpoints| endpoints.url((Host::HuggingFace, "a/b"), "main", "x.bin");
        assert_eq!(
            url(&of(&[("HF_ENDPOINT", "")]).unwrap()),
            "https://huggingface.co/datasets/a/b/resolve/main/x.bin"
        );
        assert_eq!(
            url(&of(&[("HF_ENDPOINT", "http://m:1/")]).unwrap()),
            "http://m:1/datasets/a/b/resolve/main/x.bin"
        );
        for bad in [
            &[("HF_ENDPOINT", "huggingface.co")],
            &[("HF_ENDPOINT", "ftp://x")],
            &[("HF_ENDPOINT", "http://")],
        ] {
            assert!(of(bad).unwrap_err().to_string().contains("`HF_ENDPOINT` is `"));
        }
        let debug = format!("{:?}", of(&[("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(!debug.contains("secret"), "{debug}");
    }

    #[test]
    fn redirects_of_every_form_are_resolved() {
        let from = "https://hub.co/datasets/a/resolve/main/x.bin?download=true";
        for (location, to) in [
            ("https://cdn.co/y?sig=1", "https://cdn.co/y?sig=1"),
            ("//cdn.co/y", "https://cdn.co/y"),
            ("/other/x.bin", "https://hub.co/other/x.bin"),
            ("y.bin", "https://hub.co/datasets/a/resolve/main/y.bin"),
            ("/login?next=http://z", "https://hub.co/login?next=http://z"),
        ] {
            assert_eq!(redirected(from, location).unwrap(), to);
        }
        assert!(redirected(from, "http://cdn.co/y").unwrap_err().to_string().contains("encrypted"));
        assert!(redirected(from, "file:///etc/passwd").is_err());
        assert_eq!(redirected("http://hub.co", "/y").unwrap(), "http://hub.co/y");
    }

    #[test]
    fn ranges_and_origins_are_read() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 10)));
        assert_eq!(parse_range("bytes */10"), None);
        assert_eq!(parse_range("5-9/10"), None);
        assert_eq!(origin("https://A.b/c"), origin("https://a.b:443"));
        assert_ne!(origin("https://a.b/c"), origin("http://a.b/c"));
        assert_ne!(origin("https://a.b.evil/c"), origin("https://a.b/c"));
    }
}
