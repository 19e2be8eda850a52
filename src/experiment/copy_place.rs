//! Where copies of checkpoints go: a folder, or a bucket of an object store.

use std::path::PathBuf;

/// A place for copies, as `checkpoint.copy_to` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyPlace {
    Folder(PathBuf),
    /// All of its URL: `s3://bucket/prefix` or `gs://bucket/prefix`.
    Bucket(String),
}

/// Whether this program was built with what speaks to object stores.
pub const HAS_BUCKETS: bool = cfg!(feature = "object-storage");

/// Why a text names no place. It may hold a secret, so that nobody repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    #[error("must not be empty")]
    Empty,
    #[error("must be a folder, or a URL that begins with `file:///`, `s3://` or `gs://`")]
    Scheme,
    #[error("names no bucket: `s3://BUCKET/PREFIX`")]
    NoBucket,
    #[error(
        "must have neither `@`, `?` nor `#` in its URL: keys come from the environment, such as \
         `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or `GOOGLE_SERVICE_ACCOUNT`"
    )]
    Secret,
}

impl CopyPlace {
    /// Reads a folder's path or a URL. No `/` stays at its end.
    pub fn parse(text: &str) -> Result<CopyPlace, NoPlace> {
        if text.is_empty() {
            return Err(NoPlace::Empty);
        }
        let folder = |path: &str| match path.trim_end_matches('/') {
            "" => CopyPlace::Folder("/".into()),
            path => CopyPlace::Folder(path.into()),
        };
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(folder(text)) };
        match scheme {
            "file" if rest.starts_with('/') => Ok(folder(rest)),
            "s3" | "gs" if rest.contains(['@', '?', '#']) => Err(NoPlace::Secret),
            "s3" | "gs" if rest.starts_with('/') || rest.is_empty() => Err(NoPlace::NoBucket),
            "s3" | "gs" => Ok(CopyPlace::Bucket(text.trim_end_matches('/').to_owned())),
            _ if rest.contains('@') => Err(NoPlace::Secret),
            _ => Err(NoPlace::Scheme),
        }
    }

    /// Whether a text is a URL of any kind, and no path.
    pub fn is_url(text: &str) -> bool {
        text.contains("://")
    }

    /// The place above, and the last name: of `s3://bucket/runs/gpt2` the latter is `gpt2`.
    pub fn split_name(&self) -> Option<(CopyPlace, String)> {
        match self {
            CopyPlace::Folder(path) => {
                let name = path.file_name()?.to_str()?.to_owned();
                Some((CopyPlace::Folder(path.parent()?.to_owned()), name))
            }
            CopyPlace::Bucket(url) => {
                let (above, name) = url.rsplit_once('/').filter(|(above, _)| !above.ends_with('/'))?;
                Some((CopyPlace::Bucket(above.to_owned()), name.to_owned()))
            }
        }
    }
}

impl std::fmt::Display for CopyPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CopyPlace::Folder(path) => write!(f, "{}", path.display()),
            CopyPlace::Bucket(url) => f.write_str(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_buckets_are_told_apart() {
        let folder = |path: &str| Ok(CopyPlace::Folder(path.into()));
        let bucket = |url: &str| Ok(CopyPlace::Bucket(url.into()));
        for (text, place) in [
            ("copies/", folder("copies")),
            ("/mnt/a", folder("/mnt/a")),
            ("file:///mnt/a", folder("/mnt/a")),
            ("s3://runs", bucket("s3://runs")),
            ("gs://runs/a/", bucket("gs://runs/a")),
            ("", Err(NoPlace::Empty)),
            ("file://mnt", Err(NoPlace::Scheme)),
            ("https://example.org/a", Err(NoPlace::Scheme)),
            ("s3:///a", Err(NoPlace::NoBucket)),
            ("s3://key:secret@runs/a", Err(NoPlace::Secret)),
            ("https://key:secret@example.org", Err(NoPlace::Secret)),
        ] {
            assert_eq!(CopyPlace::parse(text), place, "{text}");
        }
    }

    #[test]
    fn a_copy_of_a_run_has_a_place_and_a_name() {
        let split = |text: &str| {
            let (above, name) = CopyPlace::parse(text).expect("a place").split_name()?;
            Some((above.to_string(), name))
        };
        assert_eq!(split("s3://runs/a/b"), Some(("s3://runs/a".into(), "b".into())));
        assert_eq!(split("/mnt/a"), Some(("/mnt".into(), "a".into())));
        assert_eq!(split("s3://runs"), None);
    }
}
