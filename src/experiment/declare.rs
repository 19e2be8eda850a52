//! How sections, keys and words of the experiment are declared: once, with what each of them does.
//!
//! The doc comments of [`super::resolved`] are the text of the reference of keys (`runner config --explain`,
//! `docs/configuration.md`, the JSON schema): these macros keep them beside the types that they make.

/// A word that a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub name: &'static str,
    /// What it stands for.
    pub meaning: &'static str,
}

/// A section of the experiment in words.
#[derive(Clone, Copy, Debug)]
pub(super) struct SectionText {
    pub about: &'static str,
    /// Each key of it, and what it does and its default in words, as [`meaning`] and [`default`] take apart.
    pub keys: &'static [(&'static str, &'static str)],
}

/// Declares a key that takes one word of several, and `WORDS`, these in the order of the reference.
macro_rules! choice {
    ($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $what:literal])* $variant:ident = $word:literal,)*
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[doc = $what])* #[serde(rename = $word)] $variant,)* }

        impl $name {
            /// What the key takes.
            pub const WORDS: &[Word] = &[$(Word { name: $word, meaning: concat!($($what),*) }),*];
        }
    };
}

/// Declares a section and what is said of it and its keys; of the experiment itself, its sections too.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $($(#[doc = $doc:literal])* pub $key:ident: $type:ty,)*
        }
        $(sections {
            $(pub $section:ident: $keys:ident,)*
        })?
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            $($(#[doc = $doc])* pub $key: $type,)*
            $($(pub $section: $keys,)*)?
        }

        impl $name {
            pub(super) const TEXT: SectionText = SectionText {
                about: concat!($($about),*),
                keys: &[$((stringify!($key), concat!($($doc),*))),*],
            };
            $(
                /// Every section by its name, the keys in none of them first; without those of sources.
                pub(super) const SECTIONS: &[(&str, SectionText)] =
                    &[("", $name::TEXT), $((stringify!($section), $keys::TEXT)),*];
            )?
        }
    };
}

pub(super) use {choice, section};
