//! A session's settings: what SET, SHOW and RESET know.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_txn::CommitProtocol;

use super::staleness::ReadStaleness;
use crate::error::{SqlError, SqlState};
use crate::types::TimeZone;

/// The version of PostgreSQL whose catalogs and behaviour clients find.
pub const SERVER_VERSION: &str = "15.10 (Meridian)";

/// What values a setting takes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Anything.
    Text,
    /// `on` and `off`, and their synonyms.
    Bool,
    /// An integer in a range.
    Integer(i64, i64),
    /// A duration; in milliseconds without a unit.
    Duration,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A time zone.
    Zone,
    /// `ISO`, with the order of day and month kept and meaningless.
    DateStyle,
    /// How old reads may be.
    Staleness,
    /// Can't be changed.
    ReadOnly,
}

struct Setting {
    /// As SHOW writes it.
    name: &'static str,
    default: &'static str,
    kind: Kind,
    /// Whether the client is told of changes.
    reported: bool,
    description: &'static str,
}

const fn setting(
    name: &'static str,
    default: &'static str,
    kind: Kind,
    reported: bool,
    description: &'static str,
) -> Setting {
    Setting { name, default, kind, reported, description }
}

/// Every isolation level is accepted and runs as serializable.
const ISOLATION: Kind =
    Kind::Choice(&["serializable", "repeatable read", "read committed", "read uncommitted"]);

/// All settings, by name.
const SETTINGS: &[Setting] = &[
    setting("application_name", "", Kind::Text, true, "The client's name for itself."),
    setting("bytea_output", "hex", Kind::Choice(&["hex"]), false, "How bytea is written."),
    setting(
        "client_encoding",
        "UTF8",
        Kind::Choice(&["UTF8", "utf-8", "unicode"]),
        true,
        "The client's character set.",
    ),
    setting(
        "client_min_messages",
        "notice",
        Kind::Choice(&[
            "debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error",
        ]),
        false,
        "Which messages the client is sent.",
    ),
    setting("DateStyle", "ISO, MDY", Kind::DateStyle, true, "How dates are written."),
    setting("default_table_access_method", "heap", Kind::Text, false, "Accepted."),
    setting("default_tablespace", "", Kind::Text, false, "Accepted; there is one place only."),
    setting("default_transaction_isolation", "serializable", ISOLATION, false, "As asked for."),
    setting(
        "default_transaction_read_only",
        "off",
        Kind::Bool,
        true,
        "Whether transactions only read where nothing else is said.",
    ),
    setting(
        "extra_float_digits",
        "1",
        Kind::Integer(-15, 3),
        false,
        "Floats are always written so that they are read back exactly.",
    ),
    setting(
        "idle_in_transaction_session_timeout",
        "0",
        Kind::Duration,
        false,
        "The longest time between two statements of a transaction.",
    ),
    setting("in_hot_standby", "off", Kind::ReadOnly, true, "Whether the server only reads."),
    setting("integer_datetimes", "on", Kind::ReadOnly, true, "Times are integers."),
    setting(
        "IntervalStyle",
        "postgres",
        Kind::Choice(&["postgres"]),
        true,
        "How intervals are written.",
    ),
    setting("is_superuser", "on", Kind::ReadOnly, true, "Whether the user may do everything."),
    setting("lc_collate", "C", Kind::ReadOnly, false, "How text sorts: by its bytes."),
    setting("lock_timeout", "0", Kind::Duration, false, "The longest wait for a lock."),
    setting("max_identifier_length", "63", Kind::ReadOnly, false, "The longest name."),
    setting(
        "meridian.commit_protocol",
        "commit_wait",
        Kind::Choice(&["commit_wait", "two_phase"]),
        false,
        "How transactions choose their timestamps, and whether they wait for them to pass.",
    ),
    setting(
        "meridian.last_commit",
        "",
        Kind::ReadOnly,
        false,
        "When the session's last commit was, and where its time went.",
    ),
    setting(
        "meridian.min_read_timestamp",
        "",
        Kind::Text,
        false,
        "What the session has seen; what it reads is no older.",
    ),
    setting(
        "meridian.read_staleness",
        "strong",
        Kind::Staleness,
        false,
        "How old what is only read may be: strong, exact 10s, max 10s.",
    ),
    setting("row_security", "on", Kind::Bool, false, "Accepted."),
    setting("search_path", "\"$user\", public", Kind::Text, false, "Where names are looked for."),
    setting("server_encoding", "UTF8", Kind::ReadOnly, true, "The server's character set."),
    setting("server_version", SERVER_VERSION, Kind::ReadOnly, true, "The version."),
    setting("server_version_num", "150010", Kind::ReadOnly, false, "The version as a number."),
    setting("session_authorization", "", Kind::ReadOnly, true, "The user."),
    setting(
        "standard_conforming_strings",
        "on",
        Kind::Choice(&["on"]),
        true,
        "Backslashes in strings mean themselves.",
    ),
    setting("statement_timeout", "0", Kind::Duration, false, "The longest time of a statement."),
    setting("synchronous_commit", "on", Kind::Text, false, "Always on."),
    setting("TimeZone", "UTC", Kind::Zone, true, "The zone in which timestamptz is written."),
    setting("transaction_isolation", "serializable", ISOLATION, false, "Always serializable."),
    setting(
        "transaction_read_only",
        "off",
        Kind::Bool,
        false,
        "Whether the transaction only reads.",
    ),
    setting("xmloption", "content", Kind::Text, false, "Accepted."),
];

/// The values of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    changed: BTreeMap<&'static str, String>,
    /// SET LOCAL: until the transaction ends.
    local: BTreeMap<&'static str, String>,
    /// What RESET goes back to: given at the connection's start.
    initial: BTreeMap<&'static str, String>,
}

impl Settings {
    /// The defaults.
    pub(crate) fn new(user: &str, protocol: CommitProtocol) -> Self {
        let initial = BTreeMap::from([
            ("session_authorization", user.to_owned()),
            ("meridian.commit_protocol", protocol.name().to_owned()),
        ]);
        Self { changed: BTreeMap::new(), local: BTreeMap::new(), initial }
    }

    /// A value given at the connection's start. Unknown names are ignored, as drivers send many.
    ///
    /// # Errors
    /// `22023` for a value that the setting doesn't take.
    pub(crate) fn start_with(&mut self, name: &str, value: &str) -> Result<(), SqlError> {
        if let Some(setting) = find(name)
            && !matches!(setting.kind, Kind::ReadOnly)
        {
            self.initial.insert(setting.name, normalized(setting, value)?);
        }
        Ok(())
    }

    /// The present value, and the name as SHOW writes it.
    ///
    /// # Errors
    /// `42704` for an unknown name.
    pub(crate) fn get(&self, name: &str) -> Result<(&'static str, &str), SqlError> {
        let setting = find(name).ok_or_else(|| unknown(name))?;
        Ok((setting.name, self.value(setting)))
    }

    fn value<'s>(&'s self, setting: &'s Setting) -> &'s str {
        let maps = [&self.local, &self.changed, &self.initial];
        let given = maps.into_iter().find_map(|map| map.get(setting.name));
        given.map_or(setting.default, String::as_str)
    }

    /// Changes a value; what the client has to be told, if anything.
    ///
    /// # Errors
    /// `42704` for an unknown name, `22023` for a value it doesn't take, `55P02` for one that can't
    /// be changed.
    pub(crate) fn set(
        &mut self,
        name: &str,
        value: &str,
    ) -> Result<Option<(String, String)>, SqlError> {
        self.set_for(name, value, false)
    }

    /// The same; with `local`, until the end of the transaction.
    pub(crate) fn set_for(
        &mut self,
        name: &str,
        value: &str,
        local: bool,
    ) -> Result<Option<(String, String)>, SqlError> {
        let setting = find(name).ok_or_else(|| unknown(name))?;
        if matches!(setting.kind, Kind::ReadOnly) {
            let message = format!("parameter \"{}\" cannot be changed", setting.name);
            return Err(SqlError::new(SqlState::CANT_CHANGE_RUNTIME_PARAM, message));
        }
        let value = normalized(setting, value)?;
        if local {
            self.local.insert(setting.name, value.clone());
        } else {
            self.local.remove(setting.name);
            self.changed.insert(setting.name, value.clone());
        }
        Ok(setting.reported.then(|| (setting.name.to_owned(), value)))
    }

    /// Back to the initial value.
    ///
    /// # Errors
    /// `42704` for an unknown name.
    pub(crate) fn reset(&mut self, name: &str) -> Result<Option<(String, String)>, SqlError> {
        let setting = find(name).ok_or_else(|| unknown(name))?;
        let changed = self.local.remove(setting.name).is_some();
        let changed = self.changed.remove(setting.name).is_some() || changed;
        let report = changed && setting.reported;
        Ok(report.then(|| (setting.name.to_owned(), self.value(setting).to_owned())))
    }

    /// Everything back to its initial value.
    pub(crate) fn reset_all(&mut self) -> Vec<(String, String)> {
        let changed: Vec<_> = self.changed.keys().chain(self.local.keys()).copied().collect();
        changed.into_iter().filter_map(|name| self.reset(name).ok().flatten()).collect()
    }

    /// Name, value and description of every setting.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &str, &'static str)> {
        SETTINGS.iter().map(|s| (s.name, self.value(s), s.description))
    }

    /// Those that a client is told at the start.
    pub(crate) fn reported(&self) -> Vec<(String, String)> {
        let reported = SETTINGS.iter().filter(|setting| setting.reported);
        reported.map(|s| (s.name.to_owned(), self.value(s).to_owned())).collect()
    }

    pub(crate) fn time_zone(&self) -> &str {
        self.get("TimeZone").map_or("UTC", |(_, zone)| zone)
    }

    /// The transaction is over: what was set for it is forgotten.
    pub(crate) fn end_local(&mut self) {
        self.local.clear();
    }

    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.get(name).is_ok_and(|(_, value)| value == "on")
    }

    pub(crate) fn statement_timeout(&self) -> Option<Duration> {
        self.timeout("statement_timeout")
    }

    pub(crate) fn lock_timeout(&self) -> Option<Duration> {
        self.timeout("lock_timeout")
    }

    pub(crate) fn idle_in_transaction_timeout(&self) -> Option<Duration> {
        self.timeout("idle_in_transaction_session_timeout")
    }

    /// None stands for none.
    fn timeout(&self, name: &str) -> Option<Duration> {
        let millis = self.get(name).ok()?.1.parse().ok()?;
        (millis > 0).then(|| Duration::from_millis(millis))
    }

    /// How the session's transactions commit.
    pub(crate) fn protocol(&self) -> CommitProtocol {
        let name = self.get("meridian.commit_protocol").map_or("", |(_, name)| name);
        CommitProtocol::named(name).unwrap_or_default()
    }

    pub(crate) fn read_staleness(&self) -> ReadStaleness {
        let value = self.get("meridian.read_staleness").ok();
        value.and_then(|(_, value)| ReadStaleness::parse(value)).unwrap_or(ReadStaleness::Strong)
    }

    /// The schemas in which unqualified names are looked for.
    pub(crate) fn search_path(&self, user: &str) -> Vec<String> {
        let path = self.get("search_path").map_or("public", |(_, path)| path);
        path.split(',')
            .map(|entry| entry.trim().trim_matches('"'))
            .filter(|entry| !entry.is_empty())
            .map(|entry| if entry == "$user" { user.to_owned() } else { entry.to_owned() })
            .collect()
    }
}

fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name.eq_ignore_ascii_case(name))
}

fn unknown(name: &str) -> SqlError {
    let message = format!("unrecognized configuration parameter \"{name}\"");
    SqlError::new(SqlState::UNDEFINED_OBJECT, message)
}

fn normalized(setting: &Setting, value: &str) -> Result<String, SqlError> {
    let invalid = || {
        let message = format!("invalid value for parameter \"{}\": \"{value}\"", setting.name);
        SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
    };
    let lower = value.to_ascii_lowercase();
    match setting.kind {
        Kind::Text => Ok(value.to_owned()),
        Kind::ReadOnly => Err(invalid()),
        Kind::Bool => match lower.as_str() {
            "on" | "true" | "yes" | "1" | "t" | "y" => Ok("on".to_owned()),
            "off" | "false" | "no" | "0" | "f" | "n" => Ok("off".to_owned()),
            _ => Err(SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("parameter \"{}\" requires a Boolean value", setting.name),
            )),
        },
        Kind::Integer(low, high) => match value.trim().parse::<i64>() {
            Ok(number) if (low..=high).contains(&number) => Ok(number.to_string()),
            _ => Err(invalid()),
        },
        Kind::Staleness => match ReadStaleness::parse(&lower) {
            Some(_) => Ok(lower.trim().to_owned()),
            None => Err(invalid().hint("Write 'strong', 'exact 10s' or 'max 10s'.")),
        },
        Kind::Duration => milliseconds(&lower).map(|ms| ms.to_string()).ok_or_else(invalid),
        Kind::Choice(choices) => {
            let found = choices.iter().find(|choice| choice.eq_ignore_ascii_case(&lower));
            let found = found.ok_or_else(invalid)?;
            Ok(match (setting.name, *found) {
                ("client_encoding", _) => "UTF8",
                ("transaction_isolation" | "default_transaction_isolation", _) => "serializable",
                (_, choice) => choice,
            }
            .to_owned())
        }
        Kind::DateStyle => {
            let known = ["iso", "mdy", "dmy", "ymd", "us", "european", "noneuropean"];
            let mut parts = lower.split(',').map(str::trim);
            if !parts.clone().all(|part| known.contains(&part)) {
                return Err(invalid());
            }
            let order = match parts.find(|part| *part != "iso") {
                Some("dmy" | "european") => "DMY",
                Some("ymd") => "YMD",
                _ => "MDY",
            };
            Ok(format!("ISO, {order}"))
        }
        Kind::Zone => {
            let value = value.trim_matches('\'');
            let local = matches!(lower.as_str(), "default" | "local");
            let zone = if local { Ok(TimeZone::utc()) } else { TimeZone::parse(value) };
            zone.map(|zone| zone.name().to_owned()).map_err(|_| invalid())
        }
    }
}

/// `1500`, `1500ms`, `2s`, `5min`, `1h`, `1d`
fn milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let factor = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor).filter(|&ms| i32::try_from(ms).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_found_whatever_their_case() {
        let lower: Vec<_> = SETTINGS.iter().map(|s| s.name.to_ascii_lowercase()).collect();
        assert!(lower.is_sorted(), "{lower:?}");
        let settings = Settings::new("me", CommitProtocol::default());
        assert_eq!(settings.get("timezone").expect("known"), ("TimeZone", "UTC"));
        let error = settings.get("nonsense").unwrap_err();
        assert_eq!(error.sqlstate, SqlState::UNDEFINED_OBJECT);
    }

    #[test]
    fn values_are_checked_and_normalized() {
        let mut settings = Settings::new("me", CommitProtocol::default());
        for (name, value, expected) in [
            ("statement_timeout", "2s", Some("2000")),
            ("statement_timeout", "2 weeks", None),
            ("datestyle", "iso, dmy", Some("ISO, DMY")),
            ("datestyle", "german", None),
            ("timezone", "-3", Some("<-03>+03")),
            ("timezone", "Middle/Earth", None),
            ("transaction_isolation", "read committed", Some("serializable")),
            ("extra_float_digits", "3", Some("3")),
            ("extra_float_digits", "4", None),
            ("client_encoding", "latin1", None),
            ("row_security", "maybe", None),
            ("server_version", "16", None),
        ] {
            let result = settings.set(name, value);
            match expected {
                Some(expected) => {
                    result.expect(name);
                    assert_eq!(settings.get(name).expect("known").1, expected, "{name}");
                }
                None => assert!(result.is_err(), "{name} = {value}"),
            }
        }
        let reports = settings.reset_all();
        assert!(reports.contains(&("TimeZone".to_owned(), "UTC".to_owned())), "{reports:?}");
        assert!(settings.statement_timeout().is_none());
    }

    #[test]
    fn the_connections_own_values_are_what_reset_goes_back_to() {
        let mut settings = Settings::new("me", CommitProtocol::default());
        settings.start_with("application_name", "psql").expect("taken");
        settings.start_with("unheard_of", "x").expect("ignored");
        settings.set("application_name", "other").expect("taken");
        settings.reset("application_name").expect("known");
        assert_eq!(settings.get("application_name").expect("known").1, "psql");
    }
}
