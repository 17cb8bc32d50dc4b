"""An S3 server whose bad days are written in advance: objects in memory, every request logged, any request answered as a plan says.

    fake = FakeS3().start()
    fake.plan("UploadPart", Status(503, "SlowDown", {"Retry-After": "1"}), nth=2)        # the second one; then as usual
    fake.plan("CompleteMultipartUpload", Answer(200, "<Error><Code>InternalError</Code></Error>"))
    fake.plan("GetObject", Cut(1000))                                                    # the whole length promised, 1000 bytes sent
    ...
    assert [r.op for r in fake.log] == [...]

It checks what a real one checks: signature, payload hash, Content-MD5, x-amz-checksum-crc32c, clock (15 minutes), region, If-None-Match.
"""
import base64
import dataclasses
import datetime
import email.utils
import hashlib
import hmac
import re
import socket
import struct
import threading
import time
import urllib.parse
import uuid
from xml.sax.saxutils import escape

from . import wire

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


# ---- what a plan may do ----

@dataclasses.dataclass
class Status:
    """An error answer. done: the operation took place all the same."""
    status: int
    code: str = "InternalError"
    headers: dict = dataclasses.field(default_factory=dict)
    done: bool = False
    extra: str = ""


@dataclasses.dataclass
class Answer:
    """Any status and body. done: the operation took place."""
    status: int
    body: str
    headers: dict = dataclasses.field(default_factory=dict)
    done: bool = False


@dataclasses.dataclass
class Reset:
    """The connection is reset after this many bytes of the request's body; nothing takes place."""
    after: int = 0


@dataclasses.dataclass
class Lost:
    """The operation takes place, its answer does not arrive (after this many bytes of it)."""
    after: int = 0


@dataclasses.dataclass
class Hang:
    """No answer for this long, then the connection is closed. done: the operation takes place first."""
    seconds: float
    done: bool = False


@dataclasses.dataclass
class Do:
    """Calls what it is given, a kill of the client perhaps, and breaks the connection off. done: the operation took place before."""
    what: object
    done: bool = False


@dataclasses.dataclass
class Cut:
    """The right Content-Length, fewer bytes, then the end. lie: Content-Length says the fewer bytes."""
    after: int
    lie: bool = False


@dataclasses.dataclass
class Headers:
    """The usual answer with other headers; None removes one."""
    headers: dict


@dataclasses.dataclass
class Request:
    op: str
    method: str
    key: str
    query: dict
    headers: dict
    size: int
    at: float
    status: int = 0


class S3Error(Exception):
    def __init__(self, status, code, message="", extra="", headers=None):
        self.status, self.code, self.message, self.extra, self.headers = status, code, message or code, extra, headers or {}


class FakeS3:
    bucket, access_key, secret_key = "metrics", "fake-access", "fake-secret"

    def __init__(self, region="us-east-1", page=1000, conditional=True, crc32c=True, clock_ahead=0, min_part=0, tls=None, host=None):
        self.region, self.page, self.conditional, self.crc32c, self.clock_ahead, self.min_part = region, page, conditional, crc32c, clock_ahead, min_part
        self.tls = tls  # an ssl.SSLContext
        self.host = host  # buckets are names below this host, not the first part of the path
        self.keys = {self.access_key: self.secret_key}
        self.tokens = {}  # access key: session token it must come with
        self.objects, self.uploads, self.log, self.plans = {}, {}, [], []
        self.lock = threading.RLock()
        self.down = False
        self.port = self.sock = None

    # ---- plans ----

    def plan(self, op, action, nth=1, times=1, key=""):
        """From the nth matching request on, `times` of them. op "*" matches all; key is part of the key."""
        self.plans.append([op, key, nth, times, action])
        return self

    def _planned(self, r):
        with self.lock:
            for p in self.plans:
                op, key, nth, times, action = p
                if (op not in ("*", r.op) and not (op == "change" and r.method in ("PUT", "POST", "DELETE"))) or key not in r.key or times == 0:
                    continue
                if nth > 1:
                    p[2] -= 1
                    continue
                p[3] -= 1
                return action
        return None

    def ops(self, *without):
        return [r.op for r in self.log if r.op not in without]

    def count(self, op):
        return sum(r.op == op for r in self.log)

    # ---- life ----

    def start(self):
        self.sock = socket.create_server(("127.0.0.1", self.port or 0))
        self.port = self.sock.getsockname()[1]
        self.open = set()
        threading.Thread(target=self._accept, args=(self.sock,), daemon=True).start()
        return self

    def stop(self):
        """Stops answering and breaks off what is open; start() serves the same objects on the same port."""
        if self.sock is None:
            return
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.sock = None
        with self.lock:
            for c in list(self.open):
                try:
                    c.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
                except OSError:
                    pass

    def objstore_yaml(self, prefix="", config=""):
        text = (f"type: S3\nconfig:\n  bucket: {self.bucket}\n  endpoint: {self.host or '127.0.0.1'}:{self.port}\n"
                f"  insecure: {'false' if self.tls else 'true'}\n")
        if "access_key" not in config and "AWS" not in config:
            text += f"  access_key: {self.access_key}\n  secret_key: {self.secret_key}\n"
        text += "".join(f"  {line}\n" for line in config.splitlines() if line and not line.startswith("AWS"))
        return text + (f"prefix: {prefix}\n" if prefix else "")

    def _accept(self, sock):
        while True:
            try:
                c, _ = sock.accept()
            except OSError:
                return
            with self.lock:
                self.open.add(c)
            threading.Thread(target=self._serve, args=(c,), daemon=True).start()

    @staticmethod
    def _reset(c):
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # the close behind it resets

    # ---- HTTP ----

    def _serve(self, c):
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            try:
                c = self.tls.wrap_socket(c, server_side=True)
            except OSError:  # a client that did not like our certificate
                return
        f = c.makefile("rb")
        try:
            while self._one(c, f):
                pass
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.open.discard(c)
            try:
                f.close()
                c.close()
            except OSError:
                pass

    def _one(self, c, f):
        line = f.readline(65537).decode("latin-1")
        if not line:
            return False
        method, target, _ = line.split(" ")
        headers = {}
        while (h := f.readline(65537).decode("latin-1").rstrip("\r\n")):
            name, _, value = h.partition(":")
            headers[name.strip().lower()] = value.strip()
        path, _, query = target.partition("?")
        q = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if self.host:
            path_of = "/" + headers["host"].removesuffix(f".{self.host}:{self.port}") + path
        else:
            path_of = path
        parts = urllib.parse.unquote(path_of).split("/", 2)
        bucket, key = parts[1], parts[2] if len(parts) > 2 else ""
        size = int(headers.get("content-length", 0))
        r = Request(self._op(method, key, q), method, key, q, headers, size, time.time())
        action = self._planned(r)
        with self.lock:
            self.log.append(r)
        if isinstance(action, Reset):
            f.read(min(action.after, size))
            self._reset(c)
            return False
        body = f.read(size)
        if len(body) < size:
            return False

        answer = None
        try:
            if isinstance(action, Hang) and not action.done:
                time.sleep(action.seconds)
                return False
            if isinstance(action, Do) and not action.done:
                action.what()
                return False
            if isinstance(action, (Status, Answer)) and not action.done:
                raise _Planned()
            with self.lock:
                if self.down:
                    raise S3Error(503, "ServiceUnavailable")
                self._authorize(r, path, query, body)
                if bucket != self.bucket:
                    raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
                answer = getattr(self, "_" + r.op)(r, body)
        except _Planned:
            pass
        except S3Error as e:
            answer = (e.status, dict(e.headers), self._error(e.code, e.message, e.extra))
        if isinstance(action, Status):
            answer = (action.status, dict(action.headers), self._error(action.code, "as planned", action.extra))
        elif isinstance(action, Answer):
            answer = (action.status, dict(action.headers), action.body.encode())
        elif isinstance(action, Hang):
            time.sleep(action.seconds)
            return False
        elif isinstance(action, Do):
            action.what()
            return False
        return self._answer(c, r, answer, action)

    def _answer(self, c, r, answer, action):
        status, headers, body = answer
        r.status = status
        headers = {"Date": email.utils.formatdate(time.time() + self.clock_ahead, usegmt=True), "x-amz-request-id": uuid.uuid4().hex[:16].upper(), **headers}
        if isinstance(action, Headers):
            headers.update(action.headers)
            headers = {k: v for k, v in headers.items() if v is not None}
        length = headers.pop("Content-Length", None) or len(body)
        if r.method == "HEAD" or status == 204:
            body = b""
        if isinstance(action, Cut):
            body = body[: action.after]
            if action.lie:
                length = len(body)
        if isinstance(action, Lost) and action.after == 0:
            self._reset(c)
            return False
        head = f"HTTP/1.1 {status} x\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        if status != 204:
            head += f"Content-Length: {length}\r\n"
        out = head.encode() + b"\r\n" + body
        if isinstance(action, Lost):
            c.sendall(out[: action.after])
            self._reset(c)
            return False
        c.sendall(out)
        return not isinstance(action, Cut)

    @staticmethod
    def _error(code, message, extra=""):
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{escape(message)}</Message>{extra}</Error>'.encode()

    @staticmethod
    def _op(method, key, q):
        if not key:
            if method == "GET":
                return "ListMultipartUploads" if "uploads" in q else "ListObjectsV2" if q.get("list-type") == "2" else "ListObjects"
            return "Bucket"
        if method == "PUT":
            return "UploadPart" if "partNumber" in q else "PutObject"
        if method == "POST":
            return "CreateMultipartUpload" if "uploads" in q else "CompleteMultipartUpload"
        if method == "DELETE":
            return "AbortMultipartUpload" if "uploadId" in q else "DeleteObject"
        return "HeadObject" if method == "HEAD" else "GetObject"

    # ---- who is it, and did all of it arrive ----

    def _authorize(self, r, path, query, body):
        m = re.fullmatch(r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})",
                         r.headers.get("authorization", ""))
        if not m:
            raise S3Error(403, "AccessDenied", "no signature")
        access, day, region, names, signature = m.groups()
        if access not in self.keys:
            raise S3Error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
        if region != self.region:
            raise S3Error(400, "AuthorizationHeaderMalformed", f"the region '{region}' is wrong; expecting '{self.region}'", f"<Region>{self.region}</Region>")
        if self.tokens.get(access) not in (None, r.headers.get("x-amz-security-token")):
            raise S3Error(400, "ExpiredToken", "The provided token has expired.")
        stamp = r.headers["x-amz-date"]
        t = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc).timestamp()
        if abs(t - time.time() - self.clock_ahead) > 900:
            raise S3Error(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
        signed = names.split(";")
        if signed != sorted(signed) or "host" not in signed or any(h.startswith("x-amz-") and h not in signed for h in r.headers):
            raise S3Error(403, "AccessDenied", "There were headers present in the request which were not signed")
        canonical = "\n".join([r.method, path, "&".join(sorted(query.split("&"))) if query else "",
                               "".join(f"{h}:{' '.join(r.headers[h].split())}\n" for h in signed), names, r.headers["x-amz-content-sha256"]])
        scope = f"{day}/{region}/s3/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode("latin-1")).hexdigest()])
        key = b"AWS4" + self.keys[access].encode()
        for part in (day, region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        if hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest() != signature:
            raise S3Error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
        if r.headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
            raise S3Error(400, "XAmzContentSHA256Mismatch")
        md5 = r.headers.get("content-md5")
        if md5 and base64.b64encode(hashlib.md5(body).digest()).decode() != md5:
            raise S3Error(400, "BadDigest")
        crc = r.headers.get("x-amz-checksum-crc32c")
        if crc and base64.b64encode(struct.pack(">I", wire.crc32c(body))).decode() != crc:
            raise S3Error(400, "BadDigest")

    # ---- operations: (status, headers, body) ----

    def _PutObject(self, r, body):
        if r.headers.get("if-none-match") == "*" and self.conditional and r.key in self.objects:
            raise S3Error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        self.objects[r.key] = (body, hashlib.md5(body).hexdigest(), time.time())
        h = {"ETag": f'"{self.objects[r.key][1]}"'}
        if self.crc32c and "x-amz-checksum-crc32c" in r.headers:
            h["x-amz-checksum-crc32c"] = r.headers["x-amz-checksum-crc32c"]
        return 200, h, b""

    def _object(self, key):
        if key not in self.objects:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
        return self.objects[key]

    def _GetObject(self, r, body):
        data, etag, _ = self._object(r.key)
        m = re.fullmatch(r"bytes=(\d+)-(\d+)", r.headers.get("range", ""))
        if not m:
            return 200, {"ETag": f'"{etag}"'}, data
        first, last = int(m[1]), min(int(m[2]), len(data) - 1)
        if first >= len(data):
            raise S3Error(416, "InvalidRange", "The requested range is not satisfiable")
        return 206, {"ETag": f'"{etag}"', "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first: last + 1]

    def _HeadObject(self, r, body):
        data, etag, _ = self._object(r.key)
        return 200, {"ETag": f'"{etag}"', "Content-Length": len(data)}, b""

    def _DeleteObject(self, r, body):
        self.objects.pop(r.key, None)
        return 204, {}, b""

    def _Bucket(self, r, body):
        return 200, {}, b""

    def _list(self, r, after, version):
        encode = (lambda s: urllib.parse.quote_plus(s, safe="/")) if r.query.get("encoding-type") == "url" else escape
        keys = sorted((k for k in self.objects if k.startswith(r.query.get("prefix", "")) and k.encode() > after.encode()), key=lambda k: k.encode())
        n = min(self.page, int(r.query.get("max-keys", 1000)))
        more, keys = len(keys) > n, keys[:n]
        out = [f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult {XMLNS}><Name>{self.bucket}</Name><IsTruncated>{str(more).lower()}</IsTruncated>']
        for k in keys:
            data, etag, at = self.objects[k]
            when = datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            out.append(f"<Contents><Key>{encode(k)}</Key><LastModified>{when}</LastModified><ETag>&quot;{etag}&quot;</ETag><Size>{len(data)}</Size>"
                       "<StorageClass>STANDARD</StorageClass></Contents>")
        if "encoding-type" in r.query:
            out.append("<EncodingType>url</EncodingType>")
        if more and version == 2:
            out.append(f"<NextContinuationToken>{base64.b64encode(keys[-1].encode()).decode()}</NextContinuationToken>")
        return 200, {"Content-Type": "application/xml"}, ("".join(out) + "</ListBucketResult>").encode()

    def _ListObjectsV2(self, r, body):
        return self._list(r, base64.b64decode(r.query.get("continuation-token", "")).decode(), 2)

    def _ListObjects(self, r, body):
        return self._list(r, r.query.get("marker", ""), 1)

    def _CreateMultipartUpload(self, r, body):
        i = uuid.uuid4().hex + "/+="
        self.uploads[i] = (r.key, {})
        return 200, {}, (f"<InitiateMultipartUploadResult {XMLNS}><Bucket>{self.bucket}</Bucket><Key>{escape(r.key)}</Key><UploadId>{i}</UploadId>"
                         "</InitiateMultipartUploadResult>").encode()

    def _upload(self, r):
        i = r.query.get("uploadId")
        if i not in self.uploads or self.uploads[i][0] != r.key:
            raise S3Error(404, "NoSuchUpload", "The specified upload does not exist.")
        return self.uploads[i][1]

    def _UploadPart(self, r, body):
        etag = hashlib.md5(body).hexdigest()
        self._upload(r)[int(r.query["partNumber"])] = (body, etag)
        return 200, {"ETag": f'"{etag}"'}, b""

    def _CompleteMultipartUpload(self, r, body):
        parts = self._upload(r)
        named = re.findall(r"<Part><PartNumber>(\d+)</PartNumber><ETag>(?:\"|&quot;)([0-9a-f]+)(?:\"|&quot;)</ETag></Part>", body.decode())
        if not named or any(int(n) not in parts or parts[int(n)][1] != e for n, e in named):
            raise S3Error(400, "InvalidPart")
        data = [parts[int(n)][0] for n, _ in named]
        if any(len(d) < self.min_part for d in data[:-1]):
            raise S3Error(400, "EntityTooSmall")
        etag = hashlib.md5(b"".join(bytes.fromhex(e) for _, e in named)).hexdigest() + f"-{len(named)}"
        self.objects[r.key] = (b"".join(data), etag, time.time())
        del self.uploads[r.query["uploadId"]]
        return 200, {}, (f"  \n <?xml version=\"1.0\" encoding=\"UTF-8\"?><CompleteMultipartUploadResult {XMLNS}><Key>{escape(r.key)}</Key>"
                         f"<ETag>&quot;{etag}&quot;</ETag></CompleteMultipartUploadResult>").encode()

    def _AbortMultipartUpload(self, r, body):
        self._upload(r)
        del self.uploads[r.query["uploadId"]]
        return 204, {}, b""

    def _ListMultipartUploads(self, r, body):
        found = sorted((k, i) for i, (k, _) in self.uploads.items() if k.startswith(r.query.get("prefix", "")))
        after = (r.query.get("key-marker", ""), r.query.get("upload-id-marker", ""))
        found = [f for f in found if f > after]
        more, found = len(found) > self.page, found[: self.page]
        encode = (lambda s: urllib.parse.quote_plus(s, safe="/")) if r.query.get("encoding-type") == "url" else escape
        out = f"<ListMultipartUploadsResult {XMLNS}><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>"
        if more:
            out += f"<NextKeyMarker>{encode(found[-1][0])}</NextKeyMarker><NextUploadIdMarker>{found[-1][1]}</NextUploadIdMarker>"
        out += "".join(f"<Upload><Key>{encode(k)}</Key><UploadId>{i}</UploadId><Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>" for k, i in found)
        return 200, {}, (out + "</ListMultipartUploadsResult>").encode()


class _Planned(Exception):
    pass


def main():
    """For tests in C (python3 -m lib.fake_s3, in tests/e2e): prints the port; a line "hang OP KEY SECONDS" on stdin plans one; ends with stdin."""
    import sys
    fake = FakeS3(page=100).start()
    print(fake.port, flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "hang":
            fake.plan(words[1], Hang(float(words[3])), key=words[2])
        print("ok", flush=True)


if __name__ == "__main__":
    main()
