//! Names of the things that carry state. All are cheap to clone and safe to print: none holds a secret.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps a name; any string is accepted, since the upstream's names are opaque.
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// A key as everybody may see it: the operator's own `id`, or a fingerprint. Never the secret.
    KeyId
}
name! {
    /// The unit that owns quota. A key configured without a project is a project of its own.
    ProjectId
}
name! {
    /// A configured set of keys with one upstream, one proxy and one set of aliases.
    Group
}
name! {
    /// A model as the upstream names it, without the `models/` prefix. Opaque.
    Model
}
name! {
    /// One gateway process; unique per start.
    ReplicaId
}
name! {
    /// One way out to one upstream: proxy (or none) and target host, without credentials.
    Egress
}
name! {
    /// Host and port of a target: models that share a name have a breaker for each.
    Host
}
name! {
    /// A named client of the gateway, as in `server.clients`.
    ClientName
}
name! {
    /// Something stored upstream that belongs to one project: `files/x`, `cachedContents/x`, `batches/x`…
    Resource
}

/// No model has a longer name, in bytes.
const LONGEST_MODEL: usize = 128;

impl Model {
    /// Whether a name can stand in a metric: names come from clients, and those of models are short and plain.
    pub fn is_plain(name: &str) -> bool {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:/@+".contains(&b);
        name.len() <= LONGEST_MODEL && name.bytes().all(is_plain)
    }
}
