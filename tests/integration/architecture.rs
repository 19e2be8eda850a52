//! The order of the modules and the absence of circles between files, read from the sources.
//!
//! `use` trees, paths in code (`crate::…`, `super::…`, `self::…`, and paths that begin with a child module or
//! an imported name) are followed through re-exports to the file that they mean. Comments, strings and what
//! is compiled for tests alone are left out: a module's tests may look anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// From the ground up: a module uses those before it in this list, and itself.
const ORDER: [&str; 19] = [
    "units",
    "rng",
    "experiment",
    "proof",
    "ops",
    "optim",
    "model",
    "store",
    "data",
    "parallel",
    "generate",
    "eval",
    "train",
    "formats",
    "plan",
    "report",
    "run",
    "verify",
    "cli",
];

/// A word, `::`, or one other character, and its line.
type Token = (String, usize);

/// The tokens of a source without comments, literals and lifetimes.
fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    let get = |at: usize| text.get(at).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while at < text.len() {
        let start = at;
        match get(at) {
            '/' if get(at + 1) == '/' => {
                while at < text.len() && get(at) != '\n' {
                    at += 1
                }
            }
            '/' if get(at + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (get(at), get(at + 1)) {
                        ('/', '*') => (depth, at) = (depth + 1, at + 2),
                        ('*', '/') => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 || at >= text.len() {
                        break;
                    }
                }
            }
            '"' => at = end_of_string(&text, at + 1),
            '\'' if get(at + 1) == '\\' => {
                at += 3;
                while at < text.len() && get(at) != '\'' {
                    at += 1
                }
                at += 1;
            }
            '\'' if get(at + 2) == '\'' => at += 3,
            '\'' => {
                at += 1;
                while is_word(get(at)) {
                    at += 1
                }
            }
            c if is_word(c) => {
                while is_word(get(at)) {
                    at += 1
                }
                let word: String = text[start..at].iter().collect();
                let hashes = text[at..].iter().take_while(|c| **c == '#').count();
                if ["r", "br", "cr"].contains(&word.as_str()) && get(at + hashes) == '"' {
                    let end: Vec<char> = ['"'].into_iter().chain(vec!['#'; hashes]).collect();
                    let from = at + hashes + 1;
                    let length = text[from..].windows(end.len()).position(|w| w == end);
                    at = length.map_or(text.len(), |length| from + length + end.len());
                } else if ["b", "c"].contains(&word.as_str()) && get(at) == '"' {
                    at = end_of_string(&text, at + 1);
                } else if !c.is_ascii_digit() {
                    found.push((word, line));
                }
            }
            ':' if get(at + 1) == ':' => {
                found.push(("::".into(), line));
                at += 2;
            }
            c => {
                if !c.is_whitespace() {
                    found.push((c.to_string(), line));
                }
                at += 1;
            }
        }
        line += text[start..at.min(text.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn end_of_string(text: &[char], mut at: usize) -> usize {
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// A path as it is written, and where.
#[derive(Clone, Debug)]
struct Mention {
    module: Vec<String>,
    path: Vec<String>,
    line: usize,
    /// The name that a `use` gives it; `*` for all of a module. None in code.
    name: Option<String>,
    public: bool,
}

/// What one file says.
#[derive(Default)]
struct Scan {
    mentions: Vec<Mention>,
    /// Modules in the file's own text.
    inline: Vec<Vec<String>>,
    /// Modules that are declared for tests alone.
    tests: Vec<Vec<String>>,
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    scan: Scan,
}

impl Reader<'_> {
    fn word(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |(word, _)| word)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |(_, line)| *line)
    }

    /// Passes over one group in brackets; its words.
    fn group(&mut self) -> String {
        let (mut depth, mut text) = (0, String::new());
        loop {
            match self.word(0) {
                "" => return text,
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            text.push_str(self.word(0));
            self.at += 1;
            if depth == 0 {
                return text;
            }
        }
    }

    /// Passes over the item, field or statement that `#[cfg(test)]` stands before.
    fn skip_for_tests(&mut self, module: &[String]) {
        while self.word(0) == "#" {
            self.at += 1;
            self.group();
        }
        let visible = usize::from(self.word(0) == "pub");
        if self.word(visible) == "mod" {
            self.scan.tests.push([module, &[self.word(visible + 1).to_owned()]].concat());
        }
        let (is_field, is_use) = (self.word(visible + 1) == ":", self.word(visible) == "use");
        loop {
            match self.word(0) {
                "(" | "[" => _ = self.group(),
                "{" => {
                    self.group();
                    if !is_use {
                        return;
                    }
                }
                "" | ";" => return self.at += 1,
                "," if is_field => return self.at += 1,
                // The end of what it stands in.
                "}" => return,
                _ => self.at += 1,
            }
        }
    }

    /// What follows `use`, up to its end.
    fn use_tree(&mut self, module: &[String], before: &[String], public: bool) {
        let mut path = before.to_vec();
        loop {
            let line = self.line();
            match self.word(0) {
                "{" => {
                    self.at += 1;
                    while !["}", ""].contains(&self.word(0)) {
                        self.use_tree(module, &path, public);
                        if self.word(0) == "," {
                            self.at += 1;
                        }
                    }
                    return self.at += 1;
                }
                "::" => self.at += 1,
                word => {
                    let word = word.to_owned();
                    self.at += 1;
                    // `self` in braces is what stands before them.
                    if word != "self" || path.is_empty() {
                        path.push(word.clone());
                    }
                    if self.word(0) == "::" {
                        continue;
                    }
                    let mut name = path.last().cloned().unwrap_or_default();
                    if self.word(0) == "as" {
                        name = self.word(1).to_owned();
                        self.at += 2;
                    }
                    if word == "*" {
                        path.pop();
                    }
                    let name = Some(name);
                    return self.scan.mentions.push(Mention {
                        module: module.into(),
                        path,
                        line,
                        name,
                        public,
                    });
                }
            }
        }
    }

    /// Everything of a module up to the end of its text.
    fn module(&mut self, module: &[String]) {
        let (mut depth, mut public) = (0_usize, false);
        while self.at < self.tokens.len() {
            let (word, line) = (self.word(0).to_owned(), self.line());
            match word.as_str() {
                "#" => {
                    self.at += 1 + usize::from(self.word(1) == "!");
                    if self.group() == "[cfg(test)]" {
                        self.skip_for_tests(module);
                    }
                }
                "pub" => {
                    self.at += 1;
                    if self.word(0) == "(" && ["crate", "super", "self", "in"].contains(&self.word(1)) {
                        self.group();
                    }
                    public = true;
                    continue;
                }
                "use" => {
                    self.at += 1;
                    self.use_tree(module, &[], public);
                }
                "mod" if self.word(2) == "{" => {
                    let inner = [module, &[self.word(1).to_owned()]].concat();
                    self.at += 3;
                    self.scan.inline.push(inner.clone());
                    self.module(&inner);
                }
                "{" => (depth, self.at) = (depth + 1, self.at + 1),
                "}" if depth == 0 => return self.at += 1,
                "}" => (depth, self.at) = (depth - 1, self.at + 1),
                "." => self.at += 2,
                first
                    if self.word(1) == "::"
                        && (first.starts_with(|c: char| c.is_alphabetic() || c == '_')) =>
                {
                    let mut path = vec![word];
                    self.at += 1;
                    while self.word(0) == "::" {
                        if !self.word(1).starts_with(|c: char| c.is_alphabetic() || c == '_') {
                            break;
                        }
                        path.push(self.word(1).to_owned());
                        self.at += 2;
                    }
                    let module = module.to_vec();
                    self.scan.mentions.push(Mention { module, path, line, name: None, public: false });
                }
                _ => self.at += 1,
            }
            public = false;
        }
    }
}

/// What a path means.
enum Meaning {
    Module(Vec<String>),
    /// An item in the file of this module.
    Item(Vec<String>),
}

/// All modules of a crate, their files and what they mention.
struct Crate {
    /// The file of each module.
    files: BTreeMap<Vec<String>, String>,
    mentions: Vec<Mention>,
}

impl Crate {
    /// Reads sources by their paths below `src`.
    fn read(sources: &BTreeMap<String, String>) -> Crate {
        let (mut files, mut mentions, mut tests) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (file, text) in sources {
            let module = module_of(file);
            let tokens = tokens(text);
            let mut reader = Reader { tokens: &tokens, at: 0, scan: Scan::default() };
            reader.module(&module);
            files.insert(module, file.clone());
            files.extend(reader.scan.inline.into_iter().map(|module| (module, file.clone())));
            mentions.append(&mut reader.scan.mentions);
            tests.append(&mut reader.scan.tests);
        }
        let is_test = |module: &[String]| {
            let last = module.last().map_or("", String::as_str);
            last == "tests" || last.ends_with("_tests") || tests.iter().any(|test| module.starts_with(test))
        };
        files.retain(|module, _| !is_test(module));
        mentions.retain(|mention| !is_test(&mention.module));
        Crate { files, mentions }
    }

    /// What `path` means in `module`; none for other crates and for local names.
    fn meaning(&self, module: &[String], path: &[String], depth: usize) -> Option<Meaning> {
        let (mut at, mut rest) = (module.to_vec(), path);
        match path.first()?.as_str() {
            "crate" => (at, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {}
            first => {
                let child = [module, &[first.to_owned()]].concat();
                if !self.files.contains_key(&child) && self.imported(module, first).is_none() {
                    return None;
                }
            }
        }
        while let Some(next) = rest.first() {
            let child = [&at[..], std::slice::from_ref(next)].concat();
            if next == "super" {
                at.pop();
            } else if self.files.contains_key(&child) {
                at = child;
            } else if let Some(import) = self.imported(&at, next).filter(|_| depth < 16) {
                let path = [&import.path[..], &rest[1..]].concat();
                return self.meaning(&at, &path, depth + 1);
            } else {
                return Some(Meaning::Item(at));
            }
            rest = &rest[1..];
        }
        Some(Meaning::Module(at))
    }

    /// The `use` that gives a module this name.
    fn imported(&self, module: &[String], name: &str) -> Option<&Mention> {
        self.mentions.iter().find(|mention| {
            mention.name.as_deref() == Some(name)
                && mention.module == module
                // A name that is imported under itself from outside is no import of ours.
                && mention.path.first().is_some_and(|first| first != name)
        })
    }

    /// Uses of modules that stand later in the order.
    fn arrows_up(&self) -> Vec<String> {
        let rank = |module: &[String]| {
            let top = module.first()?;
            Some(ORDER.iter().position(|name| name == top).ok_or_else(|| top.clone()))
        };
        let mut faults = BTreeSet::new();
        for mention in &self.mentions {
            let Some(from) = rank(&mention.module) else { continue };
            let at = format!("{}:{}", self.files[&mention.module], mention.line);
            let meant = match self.meaning(&mention.module, &mention.path, 0) {
                Some(Meaning::Module(module) | Meaning::Item(module)) => module,
                None => continue,
            };
            let written = if mention.path[0] == "crate" { &mention.path[1..] } else { &[] };
            for to in [rank(&meant), rank(written)].into_iter().flatten() {
                match (&from, to) {
                    (Ok(from), Ok(to)) if to > *from => {
                        faults.insert(format!(
                            "{at}: `{}` uses `{}`, which stands above it",
                            ORDER[*from], ORDER[to]
                        ));
                    }
                    (Err(name), _) => _ = faults.insert(format!("`{name}` is not in the order of modules")),
                    _ => {}
                }
            }
        }
        faults.into_iter().collect()
    }

    /// Which file uses which, each with the first line that says so. What a `mod.rs` re-exports of its own
    /// folder is no use of it.
    fn edges(&self) -> BTreeMap<(String, String), usize> {
        let mut edges = BTreeMap::new();
        for mention in &self.mentions {
            let meant = match self.meaning(&mention.module, &mention.path, 0) {
                Some(Meaning::Item(module)) => module,
                Some(Meaning::Module(module)) if mention.name.as_deref() == Some("*") => module,
                _ => continue,
            };
            if mention.public && meant.starts_with(&mention.module) {
                continue;
            }
            let (Some(from), Some(to)) = (self.files.get(&mention.module), self.files.get(&meant)) else {
                continue;
            };
            if from != to {
                edges.entry((from.clone(), to.clone())).or_insert(mention.line);
            }
        }
        edges
    }

    /// Files that use each other: between folders always, within one unless it is a `mod.rs` with its files.
    fn circles(&self) -> Vec<String> {
        let edges = self.edges();
        let folder =
            |file: &str| file.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
        let is_own_mod =
            |a: &str, b: &str| folder(a) == folder(b) && (a.ends_with("/mod.rs") || b.ends_with("/mod.rs"));
        let all = |_: &(String, String)| true;
        let siblings = |(a, b): &(String, String)| !is_own_mod(a, b);
        let mut faults = Vec::new();
        for (wanted, between_folders) in
            [(&all as &dyn Fn(&(String, String)) -> bool, true), (&siblings, false)]
        {
            for circle in components(edges.keys().filter(|edge| wanted(edge))) {
                let folders: BTreeSet<String> = circle.iter().map(|file| folder(file)).collect();
                if (folders.len() > 1) != between_folders {
                    continue;
                }
                let inside = edges.iter().filter(|((a, b), _)| circle.contains(a) && circle.contains(b));
                let lines: Vec<String> =
                    inside.map(|((a, b), line)| format!("  {a}:{line} uses {b}")).collect();
                faults.push(format!("these files use each other:\n{}", lines.join("\n")));
            }
        }
        faults
    }
}

/// Sets of files that can all reach each other, of two files and more.
fn components<'a>(edges: impl Iterator<Item = &'a (String, String)>) -> Vec<BTreeSet<String>> {
    let mut uses: BTreeMap<&'a str, Vec<&'a str>> = BTreeMap::new();
    edges.for_each(|(from, to)| uses.entry(from).or_default().push(to));
    let reached = |from: &'a str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(uses.get(file).into_iter().flatten().filter(|next| seen.insert(**next)));
        }
        seen
    };
    let from: BTreeMap<&str, BTreeSet<&str>> = uses.keys().map(|file| (*file, reached(file))).collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (file, reach) in &from {
        if reach.contains(file) && !found.iter().any(|circle| circle.contains(*file)) {
            let back = |other: &&&str| from.get(**other).is_some_and(|reach| reach.contains(file));
            found.push(reach.iter().filter(back).map(|file| (*file).to_owned()).collect());
        }
    }
    found
}

/// `store/mod.rs` is `store`, `store/writer.rs` is `store::writer`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    if ["lib", "main"].contains(&path) { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

fn read_folder(folder: &Path, src: &Path, sources: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_folder(&path, src, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(src).expect("below src").to_string_lossy().into_owned();
            sources.insert(name, std::fs::read_to_string(&path).expect("readable"));
        }
    }
}

fn this_crate() -> Crate {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    read_folder(&src, &src, &mut sources);
    sources.remove("main.rs");
    Crate::read(&sources)
}

#[test]
fn every_module_uses_only_those_below_it() {
    let house = this_crate();
    assert!(house.edges().len() > 300, "only {} uses were found: is the search right?", house.edges().len());
    let faults = house.arrows_up();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let faults = this_crate().circles();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
