// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rust and assembly source as the checks read it: words of code, without comments and texts.

/// The code in a Rust file: comments, strings and characters are replaced by spaces.
pub fn code(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = skipped(&bytes[at..], bytes[..at].last().copied());
        match length {
            0 => {
                code.push(bytes[at]);
                at += 1;
            }
            _ => {
                // Line ends stay, so that lines still count.
                code.extend(bytes[at..at + length].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
                at += length;
            }
        }
    }
    code
}

/// How many characters from here are no code.
fn skipped(rest: &[char], before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match rest {
        ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => block_comment(rest),
        ['"', ..] => string(rest),
        ['r', '"' | '#', ..] if !in_word => raw_string(rest),
        ['\'', '\\', ..] => 2 + rest[2..].iter().skip(1).position(|c| *c == '\'').map_or(0, |end| end + 2),
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let body = 2 + hashes;
    let is_end = |window: &[char]| window[0] == '"' && window[1..].iter().all(|c| *c == '#');
    let end = rest[body..].windows(1 + hashes).position(is_end);
    end.map_or(rest.len(), |end| body + end + 1 + hashes)
}

/// How often a word stands in code.
pub fn count(code: &str, word: &str) -> usize {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|found| *found == word).count()
}

/// Whether a Rust file defines this function, or an assembly file this label.
pub fn defines(text: &str, function: &str) -> bool {
    let code = code(text);
    let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let is_label = |line: &str| line.trim().strip_suffix(':').is_some_and(|label| label.trim() == function);
    words.windows(2).any(|pair| pair == ["fn", function]) || code.lines().any(is_label)
}

/// What stands between a function's braces, or behind a label up to the next one that is not local; one text for every
/// function of that name. Comments and texts are blank.
pub fn bodies(text: &str, function: &str) -> Vec<String> {
    let code = code(text);
    let rust = positions(&code, function).into_iter().filter(|at| code[..*at].trim_end().ends_with("fn"));
    let mut found: Vec<String> = rust.filter_map(|at| braces(&code[at..])).collect();
    found.extend(assembly(&code, function));
    found
}

/// Where a word stands in code.
pub fn positions(code: &str, word: &str) -> Vec<usize> {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let whole = |at: &usize| !is_part(code[..*at].chars().next_back()) && !is_part(code[at + word.len()..].chars().next());
    code.match_indices(word).map(|(at, _)| at).filter(whole).collect()
}

/// From the first brace to the one that closes it; none for a function without a body.
fn braces(code: &str) -> Option<String> {
    // A semicolon ends a function without a body, but not within the type of an array.
    let mut arrays = 0;
    let start = code.find(|c: char| {
        arrays += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        c == '{' || (c == ';' && arrays == 0)
    });
    let start = start.filter(|at| code[*at..].starts_with('{'))?;
    let mut depth = 0;
    for (at, c) in code[start..].char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some(code[start..start + at].to_owned());
        }
    }
    None
}

fn assembly(code: &str, label: &str) -> Option<String> {
    let names = |line: &str| line.trim().strip_suffix(':').map(|name| name.trim().to_owned());
    let mut lines = code.lines().skip_while(|line| names(line).as_deref() != Some(label)).skip(1).peekable();
    lines.peek()?;
    // A global label ends the piece; numbers and names with a dot are local to it.
    let is_next = |line: &&str| names(line).is_some_and(|name| name.starts_with(|c: char| c.is_alphabetic() || c == '_'));
    Some(lines.take_while(|line| !is_next(line)).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_end_where_they_end() {
        let text = "fn a() -> u8 { if x { b() } /* c() */ }\nfn d(a: [u8; 2]);\nfn g(a: [u8; 2]) { d() }\nimpl T { fn a(&self) { e(\"f\") } }";
        assert_eq!(bodies(text, "a").iter().map(|body| positions(body, "b").len()).collect::<Vec<_>>(), [1, 0]);
        assert!(bodies(text, "a").iter().all(|body| positions(body, "c").is_empty() && positions(body, "f").is_empty()));
        assert!(bodies(text, "d").is_empty() && bodies(text, "g").len() == 1);
        let text = "one:\n    bl helper\n1:  b 1b\ntwo:\n    eret";
        assert!(bodies(text, "one")[0].contains("1b") && !bodies(text, "one")[0].contains("eret"));
    }

    #[test]
    fn comments_and_texts_are_no_code() {
        let text = "unsafe { /* unsafe /* unsafe */ */ } // unsafe\n\"unsafe \\\" unsafe\" r#\"unsafe \" unsafe\"# '\"' unsafe '\\'' b\"unsafe\"";
        assert_eq!(count(&code(text), "unsafe"), 2);
    }

    #[test]
    fn lifetimes_are_no_characters() {
        assert_eq!(count(&code("fn f<'a>(x: &'a str) { unsafe { g('x') } }"), "unsafe"), 1);
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(count("unsafe_code unsafe my_unsafe", "unsafe"), 1);
    }

    #[test]
    fn functions_and_labels_are_found() {
        assert!(defines("pub const fn take<M: Machine>(local: &mut Local) {}", "take"));
        assert!(defines("    .align 7\nexit_from_guest:\n    stp x0, x1", "exit_from_guest"));
        assert!(!defines("// fn take()\nfn taken() {}", "take"));
    }
}
