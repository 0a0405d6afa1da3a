// Command wget is the part of busybox's wget that the tests in a cluster use:
//
//	/bin/wget [-T SECONDS] [--no-check-certificate] -qO- URL
//
// Role: asks for a page and prints it, from a pod whose image is busybox. Debian's busybox is linked statically to a C
// library that cannot look up names when it is (its wget ends with a segmentation fault). Its shell takes its own wget
// before any other, but for one that is called by its path.
//
// Boundary: GET alone; the whole of it within SECONDS (900 if not said, as busybox's), at most 1 MiB of the answer.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

const bytesMax = 1 << 20

func main() {
	client := &http.Client{Timeout: 900 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	url := ""
	for args := os.Args[1:]; len(args) > 0; args = args[1:] {
		switch {
		case args[0] == "-qO-":
		case args[0] == "--no-check-certificate":
			client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		case args[0] == "-T" && len(args) > 1:
			args = args[1:]
			seconds, err := strconv.Atoi(args[0])
			fail(err)
			client.Timeout = time.Duration(seconds) * time.Second
		case url == "" && args[0][:1] != "-":
			url = args[0]
		default:
			fail(fmt.Errorf("not known here: %s", args[0]))
		}
	}
	answer, err := client.Get(url)
	fail(err)
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, io.LimitReader(answer.Body, bytesMax))
	fail(err)
	if answer.StatusCode >= http.StatusBadRequest {
		fail(fmt.Errorf("server returned error: %s", answer.Status))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "wget:", err)
		os.Exit(1)
	}
}
