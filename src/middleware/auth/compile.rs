//! From the written `authenticators` to running ones: every problem is reported, and what did not change is taken over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;
use jsonwebtoken::Algorithm;

use super::api_key::ApiKeys;
use super::basic::{self, Basic, Users};
use super::claims::Forward;
use super::client_cert::{self, ClientCert};
use super::errands::Errands;
use super::failure::BEARER;
use super::introspection::Introspection;
use super::jwks::Jwks;
use super::jwt::{Digest, Jwt, Keys, digest};
use super::keys::{self, KeySet};
use super::place::Place;
use super::{Authenticator, Authenticators, Kind, Registry};
use crate::config::auth as config;
use crate::config::problem::{Severity, unreadable};
use crate::config::{At, Problems};

/// Longest file of keys or users that is read.
const MAX_FILE: u64 = 16 << 20;

impl Authenticators {
    /// Compiles all of them. `base` finds a file that is named at a place; `registry` has those that serve now.
    /// Nothing changes in `registry` before [`Authenticators::start`].
    pub fn compile(
        written: &BTreeMap<String, config::Authenticator>,
        registry: &Registry,
        base: &dyn Fn(&At, &str) -> PathBuf,
        problems: &mut Problems,
    ) -> Self {
        let mut by_name = BTreeMap::new();
        for (name, block) in written {
            let serving = registry.get(name).filter(|old| old.block == without_place(block));
            let mut found = Problems::default();
            let new = Build { name, block, base, errands: &registry.errands, files: Vec::new(), problems: &mut found }.build();
            let chosen = choose(name, block, new, serving, found, problems);
            by_name.insert(name.clone(), chosen);
        }
        Self { by_name, registry: registry.clone() }
    }
}

/// The new one, or the one that serves if nothing changed or a file of its is broken now.
fn choose(
    name: &str,
    block: &config::Authenticator,
    new: Option<Authenticator>,
    serving: Option<Arc<Authenticator>>,
    found: Problems,
    problems: &mut Problems,
) -> Option<Arc<Authenticator>> {
    match (new, serving) {
        (Some(new), Some(old)) if new.files == old.files && !found.has_errors() => {
            problems.extend(found);
            Some(old)
        }
        (Some(new), _) if !found.has_errors() => {
            problems.extend(found);
            Some(Arc::new(new))
        }
        // The block is the one that serves, so what is wrong is in a file: its last good content goes on.
        (_, Some(old)) => {
            for problem in found.list() {
                let text = match problem.severity {
                    Severity::Error => format!("{}; `{name}` keeps what it had before", problem.message),
                    Severity::Warning => problem.message.clone(),
                };
                let warning = problems.warn(problem.at.clone(), text);
                if let Some(help) = &problem.help {
                    warning.help(help.clone());
                }
            }
            Some(old)
        }
        (_, None) => {
            if !found.has_errors() {
                problems.error(block.at.clone(), format!("`{name}` cannot be built"));
            }
            problems.extend(found);
            None
        }
    }
}

fn without_place(block: &config::Authenticator) -> config::Authenticator {
    config::Authenticator { at: At::default(), ..block.clone() }
}

/// One authenticator being built.
struct Build<'b> {
    name: &'b str,
    block: &'b config::Authenticator,
    base: &'b dyn Fn(&At, &str) -> PathBuf,
    errands: &'b Arc<Errands>,
    /// Digests of the files read.
    files: Vec<u8>,
    problems: &'b mut Problems,
}

struct Parts {
    kind: Kind,
    places: Vec<Place>,
    keep: bool,
    challenge: String,
}

impl Build<'_> {
    fn build(mut self) -> Option<Authenticator> {
        let block = self.block;
        let kinds = [
            block.jwt.is_some(),
            block.api_key.is_some(),
            block.introspection.is_some(),
            block.basic.is_some(),
            block.client_cert.is_some(),
        ];
        let given = kinds.iter().filter(|given| **given).count();
        if given != 1 {
            let words = if given == 0 { "no kind is given" } else { "more than one kind is given" };
            self.problems.error(block.at.clone(), words).help("write exactly one of jwt, api_key, introspection, basic, client_cert");
            return None;
        }
        let parts = if let Some(jwt) = &block.jwt {
            self.jwt(jwt, &block.at.key("jwt"))
        } else if let Some(api_key) = &block.api_key {
            self.api_key(api_key, &block.at.key("api_key"))
        } else if let Some(introspection) = &block.introspection {
            self.introspection(introspection, &block.at.key("introspection"))
        } else if let Some(basic) = &block.basic {
            self.basic(basic, &block.at.key("basic"))
        } else {
            let forward = &block.client_cert.as_ref()?.forward;
            Some(self.client_cert(forward, &block.at.key("client_cert")))
        }?;
        let Parts { kind, places, keep, challenge } = parts;
        let files: Digest = digest(&self.files);
        Some(Authenticator { name: self.name.to_owned(), block: without_place(block), files, kind, places, keep, challenge })
    }

    /// A file's content; a file that cannot be read is a problem at `at`.
    fn read(&mut self, at: &At, name: &str) -> Option<Vec<u8>> {
        let path = (self.base)(at, name);
        match read_limited(&path) {
            Ok(content) => {
                self.files.extend_from_slice(&digest(&content));
                Some(content)
            }
            Err(error) => {
                let problem = self.problems.error(at.clone(), format!("cannot read `{name}`: {error}"));
                problem.help = unreadable(&error).map(str::to_owned);
                None
            }
        }
    }

    fn places(&mut self, from: &[config::Place], at: &At) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::with_capacity(from.len());
        if from.is_empty() {
            self.problems.error(at.clone(), "no place to read the credential from").help("write for example `from: [bearer]`");
        }
        for (index, place) in from.iter().enumerate() {
            let place = Place::from(place);
            if places.contains(&place) {
                self.problems.error(at.index(index), "this place is listed twice");
            } else {
                places.push(place);
            }
        }
        places
    }

    fn jwt(&mut self, jwt: &config::Jwt, at: &At) -> Option<Parts> {
        if jwt.issuer.is_empty() {
            self.problems.error(at.key("issuer"), "`issuer` is empty").help("write the `iss` that tokens must have");
        }
        if jwt.audience.is_empty() || jwt.audience.iter().any(String::is_empty) {
            self.problems.error(at.key("audience"), "`audience` is empty").help("list what `aud` of a token must name");
        }
        let algorithms = self.algorithms(jwt, at);
        let forward = Forward::compile(&jwt.forward, None, &at.key("forward"), self.problems);
        let places = self.places(&jwt.from, &at.key("from"));
        let keys = self.keys(jwt, &algorithms, at)?;
        let kind = Kind::Jwt(Arc::new(Jwt::new(jwt, algorithms, forward, keys)));
        Some(Parts { kind, places, keep: jwt.keep, challenge: BEARER.to_owned() })
    }

    fn api_key(&mut self, config: &config::ApiKey, at: &At) -> Option<Parts> {
        let forward = Forward::compile(&config.forward, Some(&["id"]), &at.key("forward"), self.problems);
        let places = self.places(&config.from, &at.key("from"));
        let mut keys = ApiKeys::new(forward);
        for (index, key) in config.keys.iter().enumerate() {
            if let Err((member, message)) = keys.add(key) {
                self.problems
                    .error(at.key("keys").index(index).key(member), message)
                    .help("`tollgate key new ID` prints a key and its entry");
            }
        }
        match &config.keys_file {
            Some(file) => self.keys_file(&mut keys, file, &at.key("keys_file"))?,
            None if keys.len() == 0 && config.keys.is_empty() => {
                let help = "`tollgate key new ID` prints a key and its entry";
                self.problems.error(at.clone(), "neither `keys` nor `keys_file` is given").help(help);
            }
            None => {}
        }
        Some(Parts { kind: Kind::ApiKey(keys), places, keep: config.keep, challenge: r#"ApiKey realm="tollgate""#.to_owned() })
    }

    fn keys_file(&mut self, keys: &mut ApiKeys, file: &str, at: &At) -> Option<()> {
        let content = self.read(at, file)?;
        let list: Vec<config::Key> = match serde_yaml::from_slice::<Option<_>>(&content) {
            Ok(Some(list)) => list,
            // A file that is being written is empty for a moment; that must not lock everybody out.
            Ok(None) => {
                self.problems.error(at.clone(), format!("`{file}` is empty")).help("write [] for no keys");
                return None;
            }
            // The parser's own words could quote a value.
            Err(error) => {
                let line = error.location().map(|location| format!(" (line {})", location.line())).unwrap_or_default();
                let message = format!("`{file}` is not a list of keys{line}");
                self.problems.error(at.clone(), message).help("each entry has `id` and `sha256`, and may have `scopes` and `expires`");
                return None;
            }
        };
        for (index, key) in list.iter().enumerate() {
            if let Err((_, message)) = keys.add(key) {
                self.problems.error(at.clone(), format!("`{file}`, entry {}: {message}", index + 1));
            }
        }
        Some(())
    }

    fn introspection(&mut self, config: &config::Introspection, at: &At) -> Option<Parts> {
        let forward = Forward::compile(&config.forward, None, &at.key("forward"), self.problems);
        let places = self.places(&config.from, &at.key("from"));
        if config.client_id.is_empty() {
            self.problems.error(at.key("client_id"), "`client_id` is empty");
        }
        let url = self.url(&config.url, &at.key("url"))?;
        let kind = Kind::Introspection(Introspection::new(self.name, config, url, forward, self.errands.clone())?);
        Some(Parts { kind, places, keep: config.keep, challenge: BEARER.to_owned() })
    }

    fn basic(&mut self, config: &config::Basic, at: &At) -> Option<Parts> {
        let forward = Forward::compile(&config.forward, Some(&["name"]), &at.key("forward"), self.problems);
        let challenge = basic::challenge(&config.realm);
        if challenge.is_none() {
            self.problems.error(at.key("realm"), "`realm` has control characters");
        }
        let at = at.key("users_file");
        let content = self.read(&at, &config.users_file)?;
        let users = Users::parse(&content, &forward).map_err(|problems| {
            for problem in problems {
                self.problems.error(at.clone(), format!("`{}`, {problem}", config.users_file));
            }
        });
        let kind = Kind::Basic(Box::new(Basic::new(forward, users.ok()?, self.errands.clone())?));
        Some(Parts { kind, places: vec![Place::Scheme("basic")], keep: config.keep, challenge: challenge? })
    }

    fn client_cert(&mut self, forward: &BTreeMap<String, String>, at: &At) -> Parts {
        let forward = Forward::compile(forward, Some(&client_cert::CLAIMS), &at.key("forward"), self.problems);
        let kind = Kind::ClientCert(ClientCert::new(forward));
        Parts { kind, places: vec![Place::Certificate], keep: true, challenge: r#"ClientCert realm="tollgate""#.to_owned() }
    }

    fn algorithms(&mut self, jwt: &config::Jwt, at: &At) -> Vec<Algorithm> {
        let at = at.key("algorithms");
        let mut list = Vec::with_capacity(jwt.algorithms.len());
        if jwt.algorithms.is_empty() {
            self.problems.error(at.clone(), "no algorithm is accepted").help("list those the issuer signs with, like [RS256]");
        }
        for (index, word) in jwt.algorithms.iter().enumerate() {
            let symmetric = "HS* need `secret`; with `jwks` and `public_key` they would let anyone who has the public key sign";
            match keys::algorithm(word) {
                Ok(algorithm) if keys::is_symmetric(algorithm) && jwt.secret.is_none() => {
                    self.problems.error(at.index(index), format!("`{word}` without `secret`")).help(symmetric);
                }
                Ok(algorithm) if !keys::is_symmetric(algorithm) && jwt.secret.is_some() => {
                    self.problems.error(at.index(index), format!("`{word}` cannot be verified with `secret`")).help("HS256, HS384, HS512");
                }
                Ok(algorithm) => list.push(algorithm),
                Err(message) => {
                    self.problems
                        .error(at.index(index), message)
                        .help("known are HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA");
                }
            }
        }
        list
    }

    fn keys(&mut self, jwt: &config::Jwt, algorithms: &[Algorithm], at: &At) -> Option<Keys> {
        match (&jwt.jwks, &jwt.secret, &jwt.public_key) {
            (Some(jwks), None, None) if is_url(jwks) => self.jwks_url(jwks, algorithms, &at.key("jwks")),
            (Some(file), None, None) => {
                let at = at.key("jwks");
                let content = self.read(&at, file)?;
                let set = KeySet::jwks(&content, algorithms)
                    .map_err(|error| self.problems.error(at.clone(), format!("`{file}`: {error}")))
                    .ok()?;
                if set.len() == 0 && !algorithms.is_empty() {
                    self.problems.error(at, format!("`{file}` has no key for {}", jwt.algorithms.join(", ")));
                    return None;
                }
                Some(Keys::Fixed(set))
            }
            (None, Some(secret), None) => {
                let at = at.key("secret");
                if secret.expose().is_empty() {
                    self.problems.error(at, "`secret` is empty");
                    return None;
                }
                if secret.expose().len() < 32 {
                    self.problems.warn(at, "`secret` is shorter than 32 bytes and could be guessed").help("use 32 random bytes or more");
                }
                Some(Keys::Fixed(KeySet::secret(secret.expose().as_bytes(), algorithms)))
            }
            (None, None, Some(file)) => {
                let at = at.key("public_key");
                let content = self.read(&at, file)?;
                match KeySet::pem(&content, algorithms) {
                    Ok(set) => Some(Keys::Fixed(set)),
                    Err(error) => {
                        self.problems.error(at, format!("`{file}`: {error}"));
                        None
                    }
                }
            }
            _ => {
                self.problems.error(at.clone(), "write exactly one of `jwks`, `secret` and `public_key`");
                None
            }
        }
    }

    fn jwks_url(&mut self, url: &str, algorithms: &[Algorithm], at: &At) -> Option<Keys> {
        let uri = self.url(url, at)?;
        Some(Keys::Fetched(Arc::new(Jwks::new(uri, algorithms.to_vec()))))
    }

    /// A http(s) URL; clear text is warned of.
    fn url(&mut self, url: &str, at: &At) -> Option<Uri> {
        let uri: Option<Uri> = url.parse().ok().filter(|uri: &Uri| uri.host().is_some_and(|host| !host.is_empty()));
        let Some(uri) = uri.filter(|_| is_url(url)) else {
            self.problems.error(at.clone(), "this is not a http or https URL");
            return None;
        };
        if uri.scheme_str() == Some("http") {
            self.problems.warn(at.clone(), "http:// is neither private nor authentic").help("use https://");
        }
        Some(uri)
    }
}

fn is_url(text: &str) -> bool {
    let has = |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    has("http://") || has("https://")
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "longer than 16 MiB"));
    }
    Ok(content)
}
