// SPDX-License-Identifier: MIT OR Apache-2.0
//! A TOML table being read: typed access to its keys, and a problem for each key nobody may use.
//!
//! Every reader takes what it can and goes on, so that one look at a manifest shows all that is wrong with it.

use crate::problem::{Code, Problem, nearest};
use crate::quantity::{parse_size, parse_time};
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// Bytes of the manifest.
pub type Span = Range<usize>;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

impl<T> Placed<T> {
    /// A value that stands there.
    pub fn new(value: T, span: Span) -> Placed<T> {
        Placed { value, span }
    }

    /// Another value at the same place.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Placed<U> {
        Placed { value: f(self.value), span: self.span }
    }
}

/// A word of the language that a later version brings, and what it will be for.
pub type Later = (&'static str, &'static str);

/// One table and what its keys are called.
pub struct Table<'a, 'i> {
    table: &'a DeTable<'i>,
    /// How a sentence names this table.
    pub name: String,
    /// Where it begins.
    pub span: Span,
}

/// Short form for what is read into.
pub type Problems = Vec<Problem>;

impl<'a, 'i> Table<'a, 'i> {
    /// A table, as sentences call it.
    pub fn new(table: &'a DeTable<'i>, name: impl Into<String>, span: Span) -> Self {
        Table { table, name: name.into(), span }
    }

    /// Complains about every key that is neither known nor foreseen.
    pub fn allow(&self, known: &[&str], later: &[Later], problems: &mut Problems) {
        for (key, _) in self.table {
            let word: &str = key.get_ref();
            if known.contains(&word) {
                continue;
            }
            problems.push(match later.iter().find(|(name, _)| *name == word) {
                Some((name, purpose)) => not_there_yet(name, purpose, key.span()),
                None => self.unknown(word, key.span(), known),
            });
        }
    }

    fn unknown(&self, word: &str, span: Span, known: &[&str]) -> Problem {
        let problem = Problem::new(Code::UnknownKey, format!("{} has no key `{word}`", self.name));
        match nearest(word, known.iter().copied()) {
            Some(meant) => problem.at(span, "no such key").hint(format!("did you mean `{meant}`?")),
            None => problem.at(span, "no such key").hint(format!("it may have: {}", known.join(", "))),
        }
    }

    /// The key and value, if there.
    pub fn get(&self, key: &str) -> Option<(Span, Placed<&'a DeValue<'i>>)> {
        let (name, value) = self.table.get_key_value(key)?;
        Some((name.span(), Placed::new(value.get_ref(), value.span())))
    }

    /// Complains when the key is not there.
    pub fn require(&self, key: &str, hint: &str, problems: &mut Problems) {
        // A misspelt key is complained about once, as unknown.
        let misspelt = || self.table.keys().any(|other| strsim::jaro_winkler(other.get_ref(), key) > 0.9);
        if self.table.get(key).is_none() && !misspelt() {
            problems.push(
                Problem::new(Code::MissingKey, format!("{} needs the key `{key}`", self.name))
                    .at(self.span.clone(), format!("`{key}` is missing here"))
                    .hint(hint),
            );
        }
    }

    /// A text.
    pub fn text(&self, key: &str, example: &str, problems: &mut Problems) -> Option<Placed<String>> {
        let (_, value) = self.get(key)?;
        match value.value.as_str() {
            Some(text) => Some(Placed::new(text.to_string(), value.span)),
            None => wrong_type(key, "a text", example, &value, problems),
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &str, problems: &mut Problems) -> Option<Placed<bool>> {
        let (_, value) = self.get(key)?;
        match value.value.as_bool() {
            Some(flag) => Some(Placed::new(flag, value.span)),
            None => wrong_type(key, "true or false", &format!("{key} = true"), &value, problems),
        }
    }

    /// A whole number in a range.
    pub fn number(&self, key: &str, range: Range<u64>, problems: &mut Problems) -> Option<Placed<u64>> {
        let (_, value) = self.get(key)?;
        number(key, &value, range, problems)
    }

    /// Whole numbers in a range.
    pub fn numbers(&self, key: &str, range: Range<u64>, problems: &mut Problems) -> Option<Placed<Vec<Placed<u64>>>> {
        let (_, value) = self.get(key)?;
        let Some(list) = value.value.as_array() else {
            return wrong_type(key, "a list of numbers", &format!("{key} = [0]"), &value, problems);
        };
        let placed = list.iter().map(|item| Placed::new(item.get_ref(), item.span()));
        let numbers: Vec<_> = placed.filter_map(|item| number(key, &item, range.clone(), problems)).collect();
        (numbers.len() == list.len()).then(|| Placed::new(numbers, value.span))
    }

    /// Bytes, from a text such as `"256M"`.
    pub fn size(&self, key: &str, example: &str, problems: &mut Problems) -> Option<Placed<u64>> {
        let text = self.text(key, &format!("{key} = \"{example}\""), problems)?;
        let size = parse_size(&text.value);
        if size.is_none() {
            problems.push(
                Problem::new(Code::BadSize, format!("`{}` is not a size", text.value))
                    .at(text.span.clone(), "not a size")
                    .hint(format!("a whole number with K, M or G, such as \"{example}\"")),
            );
        }
        size.map(|size| Placed::new(size, text.span))
    }

    /// Microseconds, from a text such as `"4ms"`.
    pub fn time(&self, key: &str, range: Range<u64>, problems: &mut Problems) -> Option<Placed<u64>> {
        let text = self.text(key, &format!("{key} = \"4ms\""), problems)?;
        let problem = match parse_time(&text.value) {
            Some(time) if range.contains(&time) => return Some(Placed::new(time, text.span)),
            Some(_) => Problem::new(Code::OutOfRange, format!("`{key}` of \"{}\" is out of range", text.value))
                .at(text.span, "out of range")
                .hint(format!("at least {}us and at most {}ms", range.start, (range.end - 1) / 1000)),
            None => Problem::new(Code::BadTime, format!("`{}` is not a time", text.value))
                .at(text.span, "not a time")
                .hint("a whole number with us, ms or s, such as \"4ms\""),
        };
        problems.push(problem);
        None
    }

    /// One of a few words, each with its meaning.
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)], problems: &mut Problems) -> Option<Placed<T>> {
        let example = format!("{key} = \"{}\"", words.first().map_or("", |word| word.0));
        let text = self.text(key, &example, problems)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(Placed::new(*meaning, text.span));
        }
        let all = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let hint = match nearest(&text.value, words.iter().map(|word| word.0)) {
            Some(meant) => format!("did you mean \"{meant}\"? It may be {all}"),
            None => format!("it may be {all}"),
        };
        problems.push(
            Problem::new(Code::BadChoice, format!("`{key}` cannot be \"{}\"", text.value))
                .at(text.span, "none of the words for this")
                .hint(hint),
        );
        None
    }

    /// A table within this one, as sentences call it.
    pub fn table(&self, key: &str, name: String, example: &str, problems: &mut Problems) -> Option<Table<'a, 'i>> {
        let (span, value) = self.get(key)?;
        match value.value.as_table() {
            Some(table) => Some(Table::new(table, name, span)),
            None => wrong_type(key, "a table", example, &value, problems),
        }
    }

    /// Tables of one name within this one, `[[…]]`.
    pub fn tables(&self, key: &str, name: &str, example: &str, problems: &mut Problems) -> Vec<Table<'a, 'i>> {
        let Some((_, value)) = self.get(key) else { return Vec::new() };
        let tables = value.value.as_array().map(|list| {
            let table = |item: &'a toml::Spanned<DeValue<'i>>| {
                Some(Table::new(item.get_ref().as_table()?, name.to_string(), item.span()))
            };
            list.iter().map(table).collect::<Option<Vec<_>>>()
        });
        match tables.flatten() {
            Some(tables) => tables,
            None => wrong_type(key, "a list of tables", example, &value, problems).unwrap_or_default(),
        }
    }

    /// The keys in the order of the text.
    pub fn entries(&self) -> Vec<(Placed<String>, Placed<&'a DeValue<'i>>)> {
        let mut entries: Vec<_> = self
            .table
            .iter()
            .map(|(key, value)| (Placed::new(key.get_ref().to_string(), key.span()), Placed::new(value.get_ref(), value.span())))
            .collect();
        entries.sort_by_key(|(key, _)| key.span.start);
        entries
    }
}

/// A part of the language that a later version brings.
pub fn not_there_yet(name: &str, purpose: &str, span: Span) -> Problem {
    Problem::new(Code::NotThereYet, format!("`{name}` is not there yet"))
        .at(span, "not there yet")
        .hint(format!("{purpose} will come with a later version; leave it out for now"))
}

fn wrong_type<T>(key: &str, wanted: &str, example: &str, value: &Placed<&DeValue<'_>>, problems: &mut Problems) -> Option<T> {
    problems.push(
        Problem::new(Code::WrongType, format!("`{key}` must be {wanted}"))
            .at(value.span.clone(), format!("this is {}", type_name(value.value)))
            .hint(format!("write it as: {example}")),
    );
    None
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn number(key: &str, value: &Placed<&DeValue<'_>>, range: Range<u64>, problems: &mut Problems) -> Option<Placed<u64>> {
    let Some(integer) = value.value.as_integer() else {
        return wrong_type(key, "a number", &format!("{}", range.start), value, problems);
    };
    match i128::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|number| u64::try_from(number).ok()) {
        Some(number) if range.contains(&number) => Some(Placed::new(number, value.span.clone())),
        _ => {
            problems.push(
                Problem::new(Code::OutOfRange, format!("`{key}` cannot be {}", integer.as_str()))
                    .at(value.span.clone(), "out of range")
                    .hint(format!("from {} to {}", range.start, range.end - 1)),
            );
            None
        }
    }
}
