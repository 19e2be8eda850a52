//! What a Rust source mentions: a tokenizer and a reader of `use` trees and paths, no more than the rules of
//! the modules need.

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
                let mut word: String = text[start..at].iter().collect();
                // `r#name` is `name`.
                if word == "r" && get(at) == '#' && is_word(get(at + 1)) {
                    let from = at + 1;
                    at = from + text[from..].iter().take_while(|c| is_word(**c)).count();
                    word = text[from..at].iter().collect();
                }
                let hashes = text[at..].iter().take_while(|c| **c == '#').count();
                if ["r", "br", "cr"].contains(&word.as_str()) && get(at + hashes) == '"' {
                    let end: Vec<char> = ['"'].into_iter().chain(vec!['#'; hashes]).collect();
                    let from = at + hashes + 1;
                    let length = text[from..].windows(end.len()).position(|w| w == end);
                    at = length.map_or(text.len(), |length| from + length + end.len());
                } else if ["b", "c"].contains(&word.as_str()) && get(at) == '"' {
                    at = end_of_string(&text, at + 1);
                } else {
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
pub struct Mention {
    /// The module that says it.
    pub module: Vec<String>,
    pub path: Vec<String>,
    pub line: usize,
    /// The name that a `use` gives it; `*` for all of a module. None in code.
    pub name: Option<String>,
    pub public: bool,
}

/// What one file says.
#[derive(Default)]
pub struct Scan {
    pub mentions: Vec<Mention>,
    /// Modules in the file's own text.
    pub inline: Vec<Vec<String>>,
    /// Modules that are declared for tests alone.
    pub tests: Vec<Vec<String>>,
    /// Types that are declared outside functions, `impl`s and macros: module, name and line.
    pub types: Vec<(Vec<String>, String, usize)>,
}

/// Reads the source of `module`.
pub fn scan(source: &str, module: &[String]) -> Scan {
    let tokens = tokens(source);
    let mut reader = Reader { tokens: &tokens, at: 0, scan: Scan::default() };
    reader.module(module);
    assert!(reader.at >= tokens.len(), "`{}` was read to line {} only", module.join("::"), reader.line());
    reader.scan
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
                // A field or method, which is no path; `..` is none.
                "." if self.word(1) != "." => self.at += 2,
                "." => self.at += 2 + usize::from(self.word(2) == "="),
                "struct" | "enum" | "union" | "trait" | "type" if depth == 0 => {
                    self.scan.types.push((module.into(), self.word(1).to_owned(), line));
                    self.at += 2;
                }
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
