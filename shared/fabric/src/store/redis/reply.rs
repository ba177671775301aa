//! Reading what a script returned: lists of text, from front to back.

use super::StoreError;
use fred::types::Value;
use keyfleet_core::state::Meta;
use keyfleet_core::time::{LedgerTime, Utc};
use std::str::FromStr;

/// What is left to read of a list.
pub(super) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(super) fn new(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            other => Err(strange(&format!("{:?}", other.kind()))),
        }
    }

    fn value(&mut self) -> Result<Value, StoreError> {
        self.0.next().ok_or_else(|| strange("nothing"))
    }

    pub(super) fn text(&mut self) -> Result<String, StoreError> {
        text(self.value()?)
    }

    pub(super) fn number<T: FromStr>(&mut self) -> Result<T, StoreError> {
        let text = self.text()?;
        text.parse().map_err(|_| strange(&text))
    }

    pub(super) fn list(&mut self) -> Result<Self, StoreError> {
        Self::new(self.value()?)
    }

    pub(super) fn texts(self) -> Result<Vec<String>, StoreError> {
        self.0.map(text).collect()
    }

    /// Names and values in turn.
    pub(super) fn pairs(mut self) -> Result<Vec<(String, String)>, StoreError> {
        let mut pairs = Vec::with_capacity(self.0.len() / 2);
        while let Some(name) = self.0.next() {
            pairs.push((text(name)?, self.text()?));
        }
        Ok(pairs)
    }

    pub(super) fn meta(&mut self) -> Result<Meta, StoreError> {
        Ok(Meta {
            epoch: self.number()?,
            commit: self.number()?,
            rev: self.number()?,
            time: LedgerTime::from_ms(self.number()?),
            at: Utc::from_ms(self.number()?),
            cursor: self.number()?,
            blind_until: LedgerTime::from_ms(self.number()?),
            stream: self.text()?,
            leader: self.text()?,
            store: self.text()?,
            author: self.text()?,
        })
    }
}

pub(super) fn text(value: Value) -> Result<String, StoreError> {
    value.into_string().ok_or_else(|| strange("a value that is no text"))
}

pub(super) fn strange(what: &str) -> StoreError {
    StoreError::Damaged(format!("{what:?} stands where something else was expected"))
}
