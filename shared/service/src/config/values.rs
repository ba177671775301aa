//! The types that options have. A value that has the wrong one is reported; then the default stands in.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use url::Url;

use super::layers::IN_CREDENTIALS;
use super::print::{HIDDEN, quoted};
use super::reader::{Field, Section};
use super::schema::Secret;

/// What a file that the configuration names must hold, and what to put there if it does not.
pub(super) struct Content {
    begin: &'static str,
    otherwise: &'static str,
}

/// Certificates or a key.
pub(super) const PEM: Content =
    Content { begin: "-----BEGIN ", otherwise: "the file is not PEM; give one that begins with -----BEGIN" };

/// What lets a NATS user in.
pub(super) const CREDENTIALS: Content = Content {
    begin: "-----BEGIN NATS USER JWT-----",
    otherwise: "the file holds no credentials; give one that `nsc generate creds` has made",
};

impl Field<'_> {
    /// A number inside a range.
    pub(super) fn number<T: FromStr + PartialOrd + Display>(&self, range: &RangeInclusive<T>) -> Option<T> {
        let text = self.text()?;
        match text.parse::<T>() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => self.expected(&format!("a number from {} to {}", range.start(), range.end())),
        }
    }

    /// A switch.
    pub(super) fn flag(&self) -> Option<bool> {
        match self.text()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(true),
            "false" | "no" | "off" | "0" => Some(false),
            _ => self.expected("true or false"),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text)) {
            return Some(*value);
        }
        let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        self.expected(&format!("one of {known}"))
    }

    /// A URL with a host and one of these schemes.
    pub(super) fn url(&self, text: &str, schemes: &[&str]) -> Option<Url> {
        match Url::parse(text) {
            Ok(url) if !schemes.contains(&url.scheme()) => {
                self.expected(&format!("a URL that begins with {}://", schemes.join(":// or ")))
            }
            Ok(url) if url.host_str().is_none_or(str::is_empty) => self.expected("a URL with a host"),
            Ok(url) => Some(url),
            Err(error) => {
                self.problem(format_args!("not a URL: {error}; give one like {}://host", schemes[0]));
                None
            }
        }
    }

    /// Whether a secret can be sent in a header at all; how it looks otherwise is nobody's business.
    pub(super) fn sendable(&self, secret: &str) -> bool {
        if secret.is_empty() {
            self.problem("empty; give a value or remove it");
        } else if secret.chars().any(char::is_control) {
            self.problem("holds a line break or another control character; give it on one line");
        } else {
            return true;
        }
        false
    }
}

impl<'c> Section<'c> {
    /// A number with a default.
    pub(super) fn number<T>(&mut self, name: &str, range: RangeInclusive<T>, default: T) -> T
    where
        T: FromStr + PartialOrd + Display,
    {
        let field = self.field(name);
        let number = field.number(&range).unwrap_or(default);
        field.show(&number);
        number
    }

    /// A number that may be absent.
    pub(super) fn optional_number<T>(&mut self, name: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + Display,
    {
        let field = self.field(name);
        let number = field.number(&range);
        field.show(number.as_ref().map_or_else(|| "null".to_owned(), ToString::to_string));
        number
    }

    /// Whole seconds.
    pub(super) fn seconds(&mut self, name: &str, range: RangeInclusive<u64>, default: u64) -> Duration {
        Duration::from_secs(self.number(name, range, default))
    }

    /// One of a few words; the first is the default.
    pub(super) fn choice<T: Copy + PartialEq>(&mut self, name: &str, words: &[(&str, T)]) -> T {
        let field = self.field(name);
        let value = field.choice(words).unwrap_or(words[0].1);
        field.show(words.iter().find(|(_, v)| *v == value).map_or("", |(word, _)| word));
        value
    }

    /// A list of non-empty texts, each with its place.
    pub(super) fn texts(&mut self, name: &str) -> Vec<(String, Field<'c>)> {
        let list = self.field(name);
        let mut texts = Vec::new();
        for field in list.elements() {
            if let Some(text) = field.name() {
                field.show(quoted(&text));
                texts.push((text, field));
            }
        }
        if texts.is_empty() {
            list.show("[]");
        }
        texts
    }

    /// The path of a file that whoever connects will read. That it is there and looks right is said now.
    pub(super) fn file(&mut self, name: &str, expected: &Content) -> Option<PathBuf> {
        let field = self.field(name);
        let Some((content, path)) = field.name().and_then(|name| field.content(&name)) else {
            field.show("null");
            return None;
        };
        field.show(quoted(&path.display().to_string()));
        if !content.contains(expected.begin) {
            field.problem(expected.otherwise);
        }
        Some(path)
    }

    /// A secret from `name`, or from the file that `name_file` names, with its place. An empty text is absent, and so
    /// is an empty credential of a unit. Any other empty file is a mistake: whoever names one means to give a secret.
    pub(super) fn secret(&mut self, name: &str) -> Option<(Secret, Field<'c>)> {
        let (field, text) = self.secret_text(name)?;
        if text.is_empty() || !field.sendable(&text) {
            return None;
        }
        Some((Secret::new(text), field))
    }

    /// As [`Self::secret`], shown as `***`.
    pub(super) fn shown_secret(&mut self, name: &str) -> Option<(Secret, Field<'c>)> {
        let secret = self.secret(name);
        match &secret {
            Some((_, field)) => field.show(HIDDEN),
            None => self.field(name).show("null"),
        }
        secret
    }

    /// The text of a secret, wherever it is; it may be empty, but in a file that is no credential.
    pub(super) fn secret_text(&mut self, name: &str) -> Option<(Field<'c>, String)> {
        let inline = self.field(name);
        let file_name = format!("{name}_file");
        let file = self.field(&file_name);
        if inline.is_set() && file.is_set() && inline.origin.same_layer(&file.origin) {
            file.problem(format_args!("`{name}` is set as well; remove one of the two"));
            return None;
        }
        if file.is_set() && file.origin > inline.origin {
            let name = file.name()?;
            let (content, path) = file.content(&name)?;
            let text = content.trim();
            // A unit's credentials all have to be there, wanted or not.
            if text.is_empty() && !name.starts_with(IN_CREDENTIALS) {
                file.problem(format_args!(
                    "the file `{}` is empty; write the secret into it, or remove the option",
                    path.display()
                ));
                return None;
            }
            return Some((file, text.to_owned()));
        }
        inline.text().map(|text| (inline, text))
    }
}

impl Field<'_> {
    /// The content of a file that this option names, and its path.
    pub(super) fn content(&self, name: &str) -> Option<(String, PathBuf)> {
        if name.starts_with(IN_CREDENTIALS) && self.cx.environment.credentials.is_none() {
            self.problem(
                "CREDENTIALS_DIRECTORY is not set: systemd sets it for units with LoadCredential=; by hand, set it to \
                 the folder with these files",
            );
            return None;
        }
        let path = self.cx.resolve(name, &self.origin);
        match self.cx.inputs.borrow_mut().read(&path) {
            Ok(content) => Some((content, path)),
            Err(error) => {
                self.problem(format_args!(
                    "cannot read `{}`: {error}; correct the path or its rights",
                    path.display()
                ));
                None
            }
        }
    }
}
