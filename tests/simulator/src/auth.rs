//! Who calls: the credentials of a request, and the truth tables of both surfaces.

use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use crate::errors::{self, Failure};
use crate::pool::{Caller, Pool};
use crate::route::Surface;
use crate::world::{KeyState, ProjectState};

/// Where a credential was found in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// `Authorization: Bearer`.
    Bearer,
    /// An `Authorization` header of any other form.
    OtherAuthorization,
    /// `x-goog-api-key`.
    GoogHeader,
    /// `?key=`.
    Query,
    /// `?access_token=`.
    AccessToken,
}

/// Every credential of one request.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    authorization: Option<String>,
    goog: Option<String>,
    query: Option<String>,
    user_project: Option<String>,
    pub(crate) kinds: Vec<Credential>,
}

impl Credentials {
    pub(crate) fn of(headers: &HeaderMap, query: Option<&str>) -> Self {
        let mut found = Self::default();
        let text = |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        for value in headers.get_all(header::AUTHORIZATION) {
            let bearer = value.as_bytes().get(..7).is_some_and(|head| head.eq_ignore_ascii_case(b"bearer "));
            found.kinds.push(if bearer { Credential::Bearer } else { Credential::OtherAuthorization });
        }
        found.authorization = text("authorization");
        found.goog = text("x-goog-api-key");
        found.user_project = text("x-goog-user-project");
        let goog = headers.get_all("x-goog-api-key").iter().count();
        found.kinds.extend(std::iter::repeat_n(Credential::GoogHeader, goog));
        for pair in query.unwrap_or_default().split('&') {
            if let Some(value) = pair.strip_prefix("key=") {
                found.kinds.push(Credential::Query);
                let decoded = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
                found.query = Some(decoded.into_owned());
            } else if pair.starts_with("access_token=") {
                found.kinds.push(Credential::AccessToken);
            }
        }
        found
    }

    fn bearer(&self) -> Option<&str> {
        let value = self.authorization.as_deref()?;
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// Every secret that was sent, in any form.
    pub(crate) fn all(&self) -> impl Iterator<Item = &str> {
        [self.bearer(), self.goog.as_deref(), self.query.as_deref()].into_iter().flatten()
    }

    /// The secret that counts on this surface, or the refusal of what was sent.
    pub(crate) fn secret(&self, surface: Surface, pool: &Pool, method: &str) -> Result<&str, Failure> {
        match surface {
            Surface::Compat => self.compat_secret(pool, method),
            Surface::Native | Surface::Upload | Surface::Control => self.native_secret(method),
        }
    }

    fn compat_secret(&self, pool: &Pool, method: &str) -> Result<&str, Failure> {
        let Some(authorization) = self.authorization.as_deref() else {
            return match self.goog.as_deref() {
                Some(key) if pool.world.auth.goog_header_on_compat && self.query.is_none() => Ok(key),
                _ => Err(errors::missing_authorization()),
            };
        };
        let token = self.bearer().filter(|token| !token.is_empty() && !token.contains(['<', '>', ' ', '$']));
        let Some(token) = token.filter(|_| !authorization.is_empty()) else {
            return Err(errors::invalid_authorization());
        };
        if self.query.is_some() || (self.goog.is_some() && pool.caller(token).is_some()) {
            return Err(errors::multiple_credentials());
        }
        if token.starts_with("ya29.") {
            return Err(errors::access_token_unsupported(method));
        }
        if token.starts_with("AQ.") && pool.world.auth.reject_auth_keys_on_compat {
            return Err(errors::multiple_credentials());
        }
        Ok(token)
    }

    fn native_secret(&self, method: &str) -> Result<&str, Failure> {
        match (&self.authorization, &self.goog, &self.query) {
            (None, None, None) if self.kinds.contains(&Credential::AccessToken) => {
                Err(errors::access_token_unsupported(method))
            }
            (None, None, None) => Err(errors::unregistered()),
            (Some(_), None, None) => Err(errors::access_token_unsupported(method)),
            (None, Some(key), None) | (None, None, Some(key)) => Ok(key),
            _ => Err(errors::multiple_credentials()),
        }
    }

    /// Headers that ask for more than a key may: refused before the key is looked at.
    pub(crate) fn check_user_project(&self) -> Result<(), Failure> {
        self.user_project.as_deref().map_or(Ok(()), |project| Err(errors::user_project_denied(project)))
    }
}

/// Whether the key and its project are in good standing.
pub(crate) fn standing(caller: Caller<'_>, method: &str) -> Result<(), Failure> {
    let number = caller.project.number;
    match caller.key.state {
        KeyState::Ok => {}
        KeyState::Invalid => return Err(errors::key_invalid()),
        KeyState::NotFound => return Err(errors::key_not_found()),
        KeyState::Expired => return Err(errors::key_expired()),
        KeyState::Leaked => return Err(errors::leaked()),
        KeyState::ServiceBlocked => return Err(errors::service_blocked(number, method)),
        KeyState::ReferrerBlocked => return Err(errors::referrer_blocked(number)),
        KeyState::IpBlocked => return Err(errors::ip_blocked(number)),
        KeyState::UnrestrictedStandard => return Err(errors::credentials_missing(method)),
    }
    match caller.project.state {
        ProjectState::Suspended => Err(errors::suspended(&caller.key.secret, number)),
        ProjectState::Denied => Err(errors::project_denied()),
        ProjectState::ServiceDisabled => Err(errors::service_disabled(number)),
        _ if !caller.project.egress_ok => Err(errors::location()),
        _ => Ok(()),
    }
}

/// What stops generation but not the listing of models.
pub(crate) fn billing(caller: Caller<'_>, pool: &Pool) -> Result<(), Failure> {
    use crate::exhausted;
    match caller.project.state {
        ProjectState::PrepayDepleted => Err(exhausted::prepay_depleted()),
        ProjectState::SpendingCap => Err(exhausted::spending_cap()),
        _ if pool.account_capped(caller.project) => Err(exhausted::billing_cap()),
        _ => Ok(()),
    }
}
