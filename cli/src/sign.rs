// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis sign`: says of a program for a running system who made it, and that no older one shall come after it.
//!
//! A key is a file with 64 hexadecimal digits; the one to keep secret may be read by its owner alone. A signature is a file of
//! two lines beside the program.

use crate::session::Outputs;
use crate::status::{Doing, Failure, Status};
use crate::upload;
use clap::Args;
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use trellis_idl::control::{Proof, statement};

/// Signs a program that takes a monitor's place, or makes the keys for that.
///
/// `./trellis sign --new KEY` makes a pair of keys: KEY, to be kept secret, and KEY.pub, which a manifest names.
/// `./trellis sign PROGRAM --key KEY --counter N` writes PROGRAM.sig, which `./trellis ctl swap` finds there.
#[derive(Args, Clone, Debug)]
pub struct Sign {
    /// The ELF file to sign
    #[arg(required_unless_present = "new", conflicts_with = "new")]
    pub program: Option<PathBuf>,
    /// The secret key
    #[arg(long, value_name = "FILE", requires = "program")]
    pub key: Option<PathBuf>,
    /// Its number: a system that has taken one takes none with a lower number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub counter: u64,
    /// Makes a pair of keys instead
    #[arg(long, value_name = "KEY")]
    pub new: Option<PathBuf>,
}

impl Sign {
    /// Does it.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let said = match (&self.new, &self.program, &self.key) {
            (Some(key), ..) => make(key)?,
            (None, Some(program), Some(key)) => sign(program, key, self.counter)?,
            _ => return Err(Failure::usage("with which key?", "./trellis sign PROGRAM --key KEY --counter N")),
        };
        writeln!(outputs.out, "{said}").doing(|| "write the output".into())?;
        Ok(Status::Well)
    }
}

fn make(path: &Path) -> Result<String, Failure> {
    let mut seed = [0; 32];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut seed)).doing(|| "read random numbers".into())?;
    let public = beside(path, "pub");
    let write = |path: &Path, mode, bytes: &[u8]| {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        file.and_then(|mut file| writeln!(file, "{}", hex(bytes))).doing(|| format!("write a new file {}", path.display()))
    };
    write(path, 0o600, &seed)?;
    write(&public, 0o644, &SigningKey::from_bytes(&seed).verifying_key().to_bytes())?;
    Ok(format!("{} is the key to sign with, {} the one that a manifest names in `signed-by`", path.display(), public.display()))
}

fn sign(program: &Path, key: &Path, counter: u64) -> Result<String, Failure> {
    let text = std::fs::read(key).doing(|| format!("read the key {}", key.display()))?;
    let seed = trellis_images::swap::key(&text);
    let seed = seed.ok_or_else(|| Failure::usage(format!("{} is no key", key.display()), "`./trellis sign --new KEY` makes one"))?;
    // What is not loaded is not sent, and not signed.
    let file = upload::lean(std::fs::read(program).doing(|| format!("read {}", program.display()))?);
    let signature = SigningKey::from_bytes(&seed).sign(&statement(counter, &digest(&file)));
    let to = beside(program, "sig");
    std::fs::write(&to, format!("counter {counter}\nsignature {}\n", hex(&signature.to_bytes()))).doing(|| format!("write {}", to.display()))?;
    Ok(format!("{} says that this is number {counter}", to.display()))
}

/// SHA-256.
pub fn digest(file: &[u8]) -> [u8; 32] {
    Sha256::digest(file).into()
}

/// The signature in a file, or beside a program where none is named.
pub fn proof(program: &Path, named: Option<&Path>) -> Result<Option<Proof>, Failure> {
    let path = named.map_or_else(|| beside(program, "sig"), Path::to_path_buf);
    if named.is_none() && !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).doing(|| format!("read the signature {}", path.display()))?;
    let proof = parse(&text);
    let hint = "`./trellis sign PROGRAM --key KEY --counter N` writes one";
    proof.map(Some).ok_or_else(|| Failure::usage(format!("{} is no signature", path.display()), hint))
}

fn parse(text: &str) -> Option<Proof> {
    let (counter, signature) = text.trim().split_once('\n')?;
    let digits = signature.trim().strip_prefix("signature ")?.trim();
    let (first, second) = digits.split_at_checked(64)?;
    let half = |digits: &str| trellis_images::swap::key(digits.as_bytes());
    Some(Proof { counter: counter.trim().strip_prefix("counter ")?.trim().parse().ok()?, signature: [half(first)?, half(second)?] })
}

/// The same path with something behind it.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signature, VerifyingKey};
    use std::os::unix::fs::PermissionsExt;

    fn carry_out(sign: &Sign) -> Result<String, Failure> {
        let (mut out, mut log) = (Vec::new(), Vec::new());
        sign.carry_out(&mut Outputs { out: &mut out, log: &mut log })?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn what_is_signed_with_a_new_key_is_known_by_its_other_half() {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, program) = (folder.path().join("ops"), folder.path().join("m.elf"));
        std::fs::write(&program, b"a program").expect("written");
        let new = Sign { program: None, key: None, counter: 0, new: Some(key.clone()) };
        carry_out(&new).expect("keys");
        assert_eq!(std::fs::metadata(&key).expect("it is there").permissions().mode() & 0o777, 0o600);
        assert!(carry_out(&new).is_err(), "no key is overwritten");
        assert_eq!(proof(&program, None).expect("none is named"), None);
        let sign = Sign { program: Some(program.clone()), key: Some(key.clone()), counter: 7, new: None };
        carry_out(&sign).expect("a signature");
        let proof = proof(&program, None).expect("it can be read").expect("it is there");
        let public = std::fs::read(beside(&key, "pub")).expect("the other half");
        let public = VerifyingKey::from_bytes(&trellis_images::swap::key(&public).expect("a key")).expect("a point");
        let signature = Signature::from_components(proof.signature[0], proof.signature[1]);
        assert!(proof.counter == 7 && public.verify_strict(&statement(7, &digest(b"a program")), &signature).is_ok());
        assert!(carry_out(&Sign { key: Some(program), ..sign }).expect_err("no key").text(false).contains("is no key"));
    }

    #[test]
    fn what_is_no_signature_is_refused() {
        let digits = "0".repeat(128);
        assert!(parse(&format!("counter 3\nsignature {digits}\n")).is_some());
        for wrong in ["", "counter 3", &format!("counter x\nsignature {digits}"), &format!("counter 3\nsignature {}", &digits[1..]), "counter 3\nsignature é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
