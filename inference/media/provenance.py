"""Signed provenance: a C2PA manifest in every file, and how to read it back.

A file says which model made it, under which job id, and whether a trained model or an
algorithm did (IPTC digital source types). It is signed with the operator's certificate,
or with a development one made on first start; then readers answer "Valid" and
"untrusted signer". Nothing here reaches the network, whatever a file asks for, but to
the operator's time-stamp server: without its answer a file is signed all the same.
"""

from __future__ import annotations

import datetime
import fcntl
import io
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from inference.errors import CannotSign, EngineFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from c2pa import Context
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, Name

log = logging.getLogger(__name__)

_IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED = _IPTC + "trainedAlgorithmicMedia"
ALGORITHMIC = _IPTC + "algorithmicallyEnhanced"
#: Our own assertion; holds what a reader needs to ask us about the file.
JOB_ASSERTION = "org.zoetrope.job"

_UNTRUSTED = "signingCredential.untrusted"
_VALID_DAYS = 5 * 365
_RENEW_DAYS = 30
#: For so long a time-stamp server that failed is not asked again: one that hangs is
#: given up after 30 s (c2pa-python 0.38, measured 2026-11-20), which not every clip must wait.
_STAMP_REST_SECONDS = 300.0
_stamps_rest: dict[str, float] = {}


@dataclass(frozen=True)
class Credential:
    """A PEM certificate chain (signer first) and its PEM private key."""

    chain: str
    key: str = field(repr=False)
    algorithm: str = "es256"
    timestamp_url: str | None = None

    @classmethod
    def load(
        cls, chain: Path, key: Path, *, timestamp_url: str | None = None
    ) -> Credential:
        """Read the operator's files; raise ValueError when they are not a pair.

        Whether readers accept what they sign, `prove` says.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        chain_pem, key_pem = chain.read_text(), key.read_text()
        private = serialization.load_pem_private_key(key_pem.encode(), password=None)
        leaf = x509.load_pem_x509_certificates(chain_pem.encode())[0]
        if private.public_key() != leaf.public_key():
            raise ValueError(
                f"{key} is not the key of the first certificate in {chain}"
            )
        return cls(
            chain=chain_pem,
            key=key_pem,
            algorithm=_algorithm_of(private),
            timestamp_url=timestamp_url,
        )

    def ends_at(self) -> datetime.datetime:
        """Return when the first certificate of the chain runs out."""
        from cryptography import x509

        chain = x509.load_pem_x509_certificates(self.chain.encode())
        return min(certificate.not_valid_after_utc for certificate in chain)


@dataclass(frozen=True)
class Provenance:
    """What a reader finds in a file. ``problems`` are C2PA status codes."""

    valid: bool
    trusted: bool
    generator: str
    model: str
    reference: str
    source_type: str
    signer: str
    is_timestamped: bool = False
    problems: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return what a job shows of it."""
        return {
            "standard": "C2PA",
            "valid": self.valid,
            "trusted": self.trusted,
            "digital_source_type": self.source_type.rsplit("/", 1)[-1],
            "signer": self.signer,
            "timestamped": self.is_timestamped,
        }


def credential(options: Mapping[str, Any], *, home: Path) -> Credential:
    """Return the operator's credential, or the development one kept under ``home``.

    ``options`` may hold ``certificate`` and ``private_key`` (paths) and
    ``timestamp_url``. One without the other is a mistake and raises ValueError.
    """
    chain, key = options.get("certificate"), options.get("private_key")
    if bool(chain) != bool(key):
        raise ValueError("signing needs both a certificate and its private key")
    url = options.get("timestamp_url") or None
    if chain and key:
        return Credential.load(Path(chain), Path(key), timestamp_url=url)
    return development_credential(home)


def development_credential(folder: Path) -> Credential:
    """Return the credential in ``folder``, making it when absent or nearly expired.

    Safe when several processes start at once: the first makes it, all use it.
    """
    chain, key = folder / "chain.pem", folder / "key.pem"
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not chain.exists() or _ends_soon(chain):
            draft = Path(tempfile.mkdtemp(prefix=".signing-", dir=folder.parent))
            _write_development_chain(draft)
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        return Credential.load(chain, key)
    finally:
        os.close(lock)


def sign(
    source: Path,
    target: Path,
    *,
    model: str,
    reference: str,
    generated: bool,
    signer: Credential,
) -> Provenance:
    """Write ``target``: ``source`` with a manifest. Return what reads back from it.

    Raises EngineFailed when the result is not valid, and CannotSign when no file's
    would be.
    """
    import c2pa

    manifest = _manifest(
        model=model, reference=reference, generated=generated, title=target.name
    )
    try:
        _seal_file(source, target, manifest, signer)
    except c2pa.C2paError as error:
        prove(signer)
        raise EngineFailed(f"signing failed: {error}") from error
    found = read_manifest(target)
    if found is None or not found.valid or found.reference != reference:
        prove(signer)
        raise EngineFailed(f"the signed file does not verify: {found}")
    return found


def prove(signer: Credential) -> None:
    """Sign a small picture; raise CannotSign, saying why, when it cannot be done.

    No time stamp is asked for.
    """
    import c2pa

    unsigned, signed = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(unsigned, "PNG")
    unsigned.seek(0)
    manifest = _manifest(model="", reference="", generated=False, title="proof")
    try:
        _seal(unsigned, signed, "image/png", manifest, _unstamped(signer))
    except c2pa.C2paError as error:
        raise CannotSign(str(error)) from error
    signed.seek(0)
    found = _read(signed, "image/png")
    if found is None or not found.valid:
        raise CannotSign(f"what it signs does not verify: {found}")


def _seal_file(
    source: Path, target: Path, manifest: dict[str, Any], signer: Credential
) -> None:
    """Sign with a time stamp where one is to be had, else without."""
    import c2pa

    def seal(credential: Credential) -> None:
        with source.open("rb") as unsigned, target.open("w+b") as signed:
            _seal(unsigned, signed, "video/mp4", manifest, credential)

    url = signer.timestamp_url
    if url is None or time.monotonic() < _stamps_rest.get(url, 0.0):
        seal(_unstamped(signer))
        return
    try:
        seal(signer)
    except c2pa.C2paError as error:
        seal(_unstamped(signer))  # raises as well where the stamp is not to blame
        _stamps_rest[url] = time.monotonic() + _STAMP_REST_SECONDS
        log.warning("signed without a time stamp: %s", error)


def _unstamped(signer: Credential) -> Credential:
    return replace(signer, timestamp_url=None)


def _seal(
    unsigned: BinaryIO,
    signed: BinaryIO,
    kind: str,
    manifest: dict[str, Any],
    signer: Credential,
) -> None:
    import c2pa

    info = c2pa.C2paSignerInfo(
        signer.algorithm,
        signer.chain.encode(),
        signer.key.encode(),
        signer.timestamp_url,
    )
    with (
        c2pa.Signer.from_info(info) as pen,
        c2pa.Builder.from_json(manifest, _closed_context()) as builder,
    ):
        builder.sign(pen, kind, unsigned, signed)


def read_manifest(path: Path) -> Provenance | None:
    """Return what the file's own manifest says, checked against its bytes; or None."""
    with path.open("rb") as file:
        return _read(file, "video/mp4")


def _read(file: BinaryIO, kind: str) -> Provenance | None:
    import c2pa

    try:
        with c2pa.Reader(kind, file, context=_closed_context()) as reader:
            report = json.loads(reader.json())
    except c2pa.C2paError as error:
        if "ManifestNotFound" in f"{type(error).__name__}{error}":
            return None
        return Provenance(
            valid=False,
            trusted=False,
            generator="",
            model="",
            reference="",
            source_type="",
            signer="",
            problems=(str(error)[:200],),
        )
    return _provenance(report)


def _provenance(report: Mapping[str, Any]) -> Provenance:
    manifest = report["manifests"][report["active_manifest"]]
    bodies = {item["label"]: item["data"] for item in manifest.get("assertions", [])}
    job = bodies.get(JOB_ASSERTION, {})
    actions: list[dict[str, Any]] = next(
        (v["actions"] for k, v in bodies.items() if k.startswith("c2pa.actions")), []
    )
    created = actions[0] if actions else {}
    problems = tuple(
        status["code"]
        for status in report.get("validation_status", [])
        if status["code"] != _UNTRUSTED
    )
    state = report.get("validation_state", "Invalid")
    signature = manifest.get("signature_info", {})
    generator = (manifest.get("claim_generator_info") or [{}])[0]
    return Provenance(
        valid=state in ("Valid", "Trusted") and not problems,
        trusted=state == "Trusted",
        generator=generator.get("name", ""),
        model=job.get("model", ""),
        reference=job.get("reference", ""),
        source_type=created.get("digitalSourceType", ""),
        signer=signature.get("issuer", ""),
        is_timestamped="time" in signature,
        problems=problems,
    )


def _manifest(
    *, model: str, reference: str, generated: bool, title: str
) -> dict[str, Any]:
    return {
        "claim_generator_info": [{"name": "Zoetrope", "version": "1"}],
        "title": title,
        "format": "video/mp4",
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {
                    "actions": [
                        {
                            "action": "c2pa.created",
                            "digitalSourceType": TRAINED if generated else ALGORITHMIC,
                            "softwareAgent": {"name": model},
                        }
                    ]
                },
            },
            {
                "label": JOB_ASSERTION,
                "data": {"model": model, "reference": reference},
            },
        ],
    }


def _closed_context() -> Context:
    """Return a context that fetches nothing: a file may name a manifest by URL."""
    import c2pa

    return c2pa.Context.from_dict(
        {
            "verify": {
                "remote_manifest_fetch": False,
                "ocsp_fetch": False,
                "verify_after_sign": False,  # read_manifest does, from the file itself
            },
            "builder": {"thumbnail": {"enabled": False}},
        }
    )


def _algorithm_of(private: object) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in curves:
        return curves[private.curve.name]
    raise ValueError("C2PA signs with P-256, P-384, P-521, RSA or Ed25519 keys only")


# -- the development certificate -----------------------------------------------------


def _ends_soon(chain: Path) -> bool:
    from cryptography import x509

    leaf = x509.load_pem_x509_certificates(chain.read_bytes())[0]
    left = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left < datetime.timedelta(days=_RENEW_DAYS)


def _write_development_chain(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    root_name = _name("Zoetrope development root")
    root = _certificate(
        root_name, root_key, issuer=root_name, issuer_key=root_key, authority=True
    )
    leaf = _certificate(
        _name("Zoetrope development signer"),
        key,
        issuer=root_name,
        issuer_key=root_key,
        authority=False,
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    secret = os.open(folder / "key.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(secret, "wb") as file:
        file.write(private)
    # The root's key is dropped: nothing else can ever be signed under it.
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))


def _name(common_name: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Zoetrope (development)"),
        ]
    )


def _certificate(
    subject: Name,
    key: EllipticCurvePrivateKey,
    *,
    issuer: Name,
    issuer_key: EllipticCurvePrivateKey,
    authority: bool,
) -> Certificate:
    """Return an X.509 v3 certificate as the C2PA profile wants it (spec 2.2, 14.5)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(
            x509.BasicConstraints(ca=authority, path_length=None), critical=True
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not authority:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(issuer_key, hashes.SHA256())
