//! A bucket of S3, of what speaks its protocol, or of Google Cloud Storage.
//!
//! Keys, region and endpoint come from the environment (`AWS_…`, `GOOGLE_…`), as `object_store` reads them.
//! Of what a server answers only its code is said: S3 repeats a key's name.

use std::io::{Read, Write};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientConfigKey, Error, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use tokio::runtime::Runtime;

use super::{CHUNK, Count};

/// Parts of an object that are sent at a time.
const PARTS: usize = 4;
/// The most parts that an object may have, of 10,000 that S3 takes.
const MOST_PARTS: u64 = 9_000;
/// How long one request may take.
const REQUEST: &str = "300 seconds";

/// A bucket, and the part of all names that its URL has.
pub struct Bucket {
    runtime: Runtime,
    store: Box<dyn ObjectStore>,
    prefix: Path,
}

/// What went wrong, on one line.
type Why = String;

impl Bucket {
    /// Opens the bucket of an `s3://` or `gs://` URL, and asks it nothing.
    pub fn open(url: &str) -> Result<Bucket, Why> {
        // Whoever chose one for this process before has chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let timeout = ClientConfigKey::Timeout;
        let store: Box<dyn ObjectStore> = if url.starts_with("gs://") {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(url).with_retry(retry());
            Box::new(builder.with_config(GoogleConfigKey::Client(timeout), REQUEST).build().map_err(why)?)
        } else {
            let builder = AmazonS3Builder::from_env().with_url(url).with_retry(retry());
            Box::new(builder.with_config(AmazonS3ConfigKey::Client(timeout), REQUEST).build().map_err(why)?)
        };
        let prefix = url.splitn(4, '/').nth(3).unwrap_or_default();
        let prefix = Path::parse(prefix).map_err(|error| error.to_string())?;
        Ok(Bucket { runtime, store, prefix })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    pub fn names(&self, name: &str) -> Result<Vec<String>, Why> {
        let listed = self.runtime.block_on(self.store.list_with_delimiter(Some(&self.path(name))));
        let listed = listed.map_err(why)?;
        let objects = listed.objects.iter().map(|object| &object.location);
        let names = listed.common_prefixes.iter().chain(objects);
        Ok(names.filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Why> {
        let payload = bytes.to_vec().into();
        self.runtime.block_on(self.store.put(&self.path(name), payload)).map(|_| ()).map_err(why)
    }

    pub fn put_all(&self, name: &str, from: &mut impl Read, bytes: u64, count: Count<'_>) -> Result<(), Why> {
        if bytes <= CHUNK {
            let mut all = Vec::new();
            from.read_to_end(&mut all).map_err(|error| error.to_string())?;
            count(all.len() as u64);
            return self.put(name, &all);
        }
        let chunk = CHUNK.max(bytes.div_ceil(MOST_PARTS));
        self.runtime.block_on(async {
            let upload = self.store.put_multipart(&self.path(name)).await.map_err(why)?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, chunk as usize);
            loop {
                let mut part = Vec::new();
                let read = from.by_ref().take(chunk).read_to_end(&mut part);
                let failed = match read {
                    Ok(0) => break,
                    Ok(_) => upload.wait_for_capacity(PARTS).await.map_err(why).err(),
                    Err(error) => Some(error.to_string()),
                };
                if let Some(failed) = failed {
                    // The parts that are there cost money until they are deleted.
                    let _ = upload.abort().await;
                    return Err(failed);
                }
                count(part.len() as u64);
                upload.put(part.into());
            }
            upload.finish().await.map(|_| ()).map_err(why)
        })
    }

    /// Reads an object part by part, each of which is tried again where it fails.
    pub fn get_into(
        &self,
        name: &str,
        most: u64,
        into: &mut dyn Write,
        count: Count<'_>,
    ) -> Result<bool, Why> {
        let path = self.path(name);
        self.runtime.block_on(async {
            let size = match self.store.head(&path).await {
                Err(Error::NotFound { .. }) => return Ok(false),
                found => found.map_err(why)?.size.min(most),
            };
            let mut at = 0;
            while at < size {
                let end = size.min(at + CHUNK);
                let part = self.store.get_range(&path, at..end).await.map_err(why)?;
                into.write_all(&part).map_err(|error| error.to_string())?;
                count(part.len() as u64);
                at = end;
            }
            Ok(true)
        })
    }

    pub fn delete(&self, name: &str) -> Result<(), Why> {
        match self.runtime.block_on(self.store.delete(&self.path(name))) {
            Err(Error::NotFound { .. }) => Ok(()),
            deleted => deleted.map_err(why),
        }
    }
}

/// Some seconds of patience: what fails is tried again at the next checkpoint.
fn retry() -> RetryConfig {
    RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() }
}

/// An error and its causes on one line; most quote theirs.
fn why(error: Error) -> Why {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let what = error.to_string();
        if !text.contains(&what) {
            text = format!("{text}: {what}");
        }
        cause = error.source();
    }
    if let Some((said, answer)) = text.split_once('<') {
        let code = answer.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        text = format!("{said}{}", code.map_or("", |(code, _)| code));
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_answer_only_its_code_is_said() {
        let answer = "403: <Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIA</AWSAccessKeyId>";
        let error = Error::Generic { store: "S3", source: answer.into() };
        assert_eq!(why(error), "Generic S3 error: 403: InvalidAccessKeyId");
    }
}
