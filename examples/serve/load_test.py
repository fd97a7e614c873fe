"""Send one image many times to a running server and print how long it took: python load_test.py IMAGE [--count 200]"""

import argparse
import statistics
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split(':')[0])
    parser.add_argument('image', type=Path)
    parser.add_argument('--url', default='http://127.0.0.1:8000/predict')
    parser.add_argument('--count', type=int, default=200, help='requests in all (default 200)')
    parser.add_argument('--clients', type=int, default=8, help='requests at a time (default 8)')
    args = parser.parse_args()
    content = args.image.read_bytes()

    def send(_: int) -> float:
        begin = time.perf_counter()
        with urllib.request.urlopen(urllib.request.Request(args.url, data=content), timeout=120) as response:
            response.read()
        return time.perf_counter() - begin

    begin = time.perf_counter()
    with ThreadPoolExecutor(args.clients) as clients:
        seconds = sorted(clients.map(send, range(args.count)))
    total = time.perf_counter() - begin
    print(
        f'{args.count} requests, {args.clients} at a time: {args.count / total:.1f} per second, '
        f'median {statistics.median(seconds):.3f} s, 95 % below {seconds[int(0.95 * args.count)]:.3f} s'
    )


if __name__ == '__main__':
    main()
